"""Will this flight be late? New York 2013, replayed."""
