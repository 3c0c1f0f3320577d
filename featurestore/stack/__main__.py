"""What the scripts ask of this package: ``python -m featurestore.stack java`` and ``... jars``.

``java`` prints the Java that would be used, ``jars`` fetches what is not in the cache yet. Exit code 1 and one line on
standard error say what is missing and what to do.
"""

from __future__ import annotations

import sys

from featurestore.errors import StackError
from featurestore.stack import find_java, kafka_jars, spark_jars


def main(arguments: list[str]) -> str:
    """Return what to print.

    Raises:
        StackError: Java or a registry is missing.
    """
    if arguments == ["java"]:
        java = find_java()
        return f"Java {java.version}: {java.executable}"
    if arguments == ["jars"]:
        jars = [*sorted(kafka_jars().glob("*.jar")), *spark_jars()]
        return f"{len(jars)} jars"
    raise StackError(f"python -m featurestore.stack: {' '.join(arguments)!r} is neither 'java' nor 'jars'.")


if __name__ == "__main__":
    try:
        sys.stdout.write(main(sys.argv[1:]) + "\n")
    except StackError as error:
        raise SystemExit(str(error)) from None
