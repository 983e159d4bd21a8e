from mixtura.classical.em import Step
from mixtura.classical.progress import progress_line, say


def test_a_line_says_where_em_stands(capsys):
    step = Step(temperature=2.5, objective=-1.25, log_likelihood=-1.0, reseeded=(0, 3))
    line = progress_line(7, step)
    assert line == "iteration 7  log-likelihood -1  objective -1.25  temperature 2.5  re-seeded 0, 3"
    say(line)
    assert capsys.readouterr().out == line + "\n"
