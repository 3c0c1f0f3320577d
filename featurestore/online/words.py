# ruff: noqa: ANN001, ANN201, ANN202, ARG001 - numba infers the types, and gives more than is needed
# mypy: disallow-untyped-defs=False
"""Words of memory in compiled code: what numba's arrays do, without counting references or looking at bounds.

A place is an address in words; who reads one has made sure that it is there.
"""

from __future__ import annotations

from typing import Any

from numba import extending, types

intrinsic: Any = extending.intrinsic


@intrinsic
def load(context, place):
    """Return the word at a place in memory, in words from its beginning."""

    def build(context, builder, signature, arguments):
        address = builder.shl(arguments[0], arguments[0].type(3))
        return builder.load(builder.inttoptr(address, arguments[0].type.as_pointer()))

    return types.int64(types.int64), build


@intrinsic
def store(context, place, word):
    """Put a word at a place in memory."""

    def build(context, builder, signature, arguments):
        address = builder.shl(arguments[0], arguments[0].type(3))
        builder.store(arguments[1], builder.inttoptr(address, arguments[0].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def as_double(context, word):
    """Return the double of the same bits."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float64))

    return types.float64(types.int64), build


@intrinsic
def as_word(context, double):
    """Return the word of the same bits."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int64))

    return types.int64(types.float64), build
