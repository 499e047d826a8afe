"""The comparison in the forms that people want it in: data frame, CSV, Markdown, LaTeX."""

import io
from typing import TYPE_CHECKING

from service.compare import plaintext
from service.schemas import comparison as schemas

if TYPE_CHECKING:
    import pandas


class Comparison(schemas.Comparison):
    """The comparison as the service made it, with the forms people want it in."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row an arm, numbers in full; `attrs["words"]` is what may be said about them. Needs pandas."""
        import pandas

        frame = pandas.read_csv(io.StringIO(self.to_csv())).set_index("arm")
        frame.attrs["words"] = self.words
        return frame

    def to_csv(self) -> str:
        return plaintext.comma_separated(self)

    def to_markdown(self) -> str:
        return plaintext.markdown(self)

    def to_latex(self) -> str:
        """A table for booktabs."""
        from service.compare.latex import latex  # loads scipy: two seconds that most commands need not spend

        return latex(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()
