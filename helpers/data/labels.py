"""Class names, superclass names, and which class belongs to which superclass."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """Names in index order.

    Attributes:
        fine: names of the classes.
        superclasses: names of the superclasses.
        superclass_of: for each class, the index of its superclass.
    """

    fine: tuple[str, ...]
    superclasses: tuple[str, ...]
    superclass_of: tuple[int, ...]

    def __post_init__(self):
        if len(self.superclass_of) != len(self.fine):
            raise ValueError(
                f"superclass_of must have one entry for each of {len(self.fine)} classes, got {len(self.superclass_of)}"
            )
        if unknown := set(self.superclass_of) - set(range(len(self.superclasses))):
            raise ValueError(f"superclass_of must be from 0 to {len(self.superclasses) - 1}, got {sorted(unknown)}")
