"""The planted faults of tests/faults.py still fit the sources they change."""
import pytest

from faults import FAULTS, PAGE, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_still_fits_the_sources(fault):
    assert fault.edits, "a fault without an edit plants nothing"
    for file, text in fault.patched(ROOT):
        assert text != file.read_text()
    for name in fault.tests.split():
        assert (ROOT / name).is_file()


def test_page_lists_every_fault():
    page = PAGE.read_text()
    assert all(f"| {fault.name} |" in page for fault in FAULTS)
    assert "**nothing" not in page
