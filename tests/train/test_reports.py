from mixtura.train.reports import Reports
from mixtura.train.run import Run
from mixtura.train.tasks.language import LanguageConfig

ROW = {"step": 1, "items_per_s": 1.0, "loss": 2.0, "load": {}, "dropped": {}}


def test_rows_are_written_and_shown(tmp_path, capsys):
    with Reports(Run(tmp_path), config=LanguageConfig(), after_step=0, enabled=True) as reports:
        reports.write(ROW | {"val_loss": {"mean": 2.5}})
        reports.sync()
    assert (tmp_path / "metrics.jsonl").read_text().count('"step": 1') == 1
    assert "val 2.500 nats/byte" in capsys.readouterr().out


def test_other_processes_leave_no_trace(tmp_path, capsys):
    with Reports(Run(tmp_path), config=LanguageConfig(), after_step=0, enabled=False) as reports:
        reports.write(ROW)
        reports.sync()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
