"""Which source made the model write this: agreement with deletions (LDS) per evaluation, beside ContextCite and inseq.

python benchmarks/sources.py ../shared/data   # prints the tables and writes benchmarks/results/sources.md

The language model of stories; contexts of facts "{name} had a {colour} {thing}.", the query "{name} went to the park with the",
and the model's response of six tokens. The truth is the log-probability of the response under 96 random deletions; LDS is its
rank correlation with the summed scores of the sources left. "n evaluations" are all prompts that whence evaluates besides the
whole one, those of `support` included. ContextCite: LASSO (α = .01) on the logit of the probability per token, with as many
random deletions as whence evaluates prompts, and four more, which the backward pass may cost. inseq (where it is installed):
input × gradient by token, in its default aggregation, summed over the tokens of a source. "cost" is the median time of the call
for one statement, in forward passes of the whole prompt and response without gradients.

"Nothing in the context supports this": facts of the context against the same statements where the sentence of the fact is left
out, so that their colour and thing are absent from the context, or occur apart, in the sentences of two others. The area under
the ROC curve of `support`, of the fall of the log-probability without the context, and of the best score.
"""

import copy
import random
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.pop(0)  # a file beside this one is called as the library transformers

import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso
from sklearn.metrics import roc_auc_score
from torch import Tensor

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
import peers

peers.declare_torchvision_operators()

import whence  # noqa: E402
from support.story_model import story_model, story_tokenizer  # noqa: E402
from whence.contexts.likelihoods import ResponseLikelihood  # noqa: E402
from whence.contexts.prompt import Prompt, encode_response, make_prompt  # noqa: E402

CONTEXTS, TRUTHS, WRITTEN = 40, 96, 6
SUPPORT = 4  # evaluations for `support`: no source, and three alone
NAMES = (
    "Lily,Tom,Mia,Ben,Sue,Max,Anna,Tim,Sam,Lucy,Jack,Amy,Bob,Sara,Joe,Kate,Leo,Emma,Dan,Ella,Rex,Nina,Bill,Rose,Finn,Ruby,Otto,"
    "Ivy,Hugo,Zoe,Carl,Jane"
)
COLOURS = "red,blue,green,big,small,pink,yellow,brown,old,new"
THINGS = "ball,kite,car,dog,cat,hat,box,bear,boat,book,cup,doll,bird,fish,toy,cake"
SCENERY = (
    "The sun was warm.,It was a nice day.,There was a big tree.,The birds sang.,The grass was green.,The wind blew.,"
    "A dog ran by.,The sky was blue.,It was time to play.,The flowers were pretty."
)
HEAD = [
    "| context | sources | ablation | evaluations | whence | relevance alone | ContextCite | ContextCite + 4 | inseq | cost |",
    "|---|---|---|---|---|---|---|---|---|---|",
]
SUPPORT_HEAD = [
    "| context | words of the statement | sources | support | fall without the context | best score |",
    "|---|---|---|---|---|---|",
]


@dataclass
class Case:
    """A list of sources with a query and a statement."""

    context: str | list[str]
    query: str
    response: str = ""

    @classmethod
    def make(cls, kind: str, count: int, draw: random.Random) -> "Case":
        """Draw a context in which the query's name has one fact, and the statement of that fact."""
        names, colours, things = (words.split(",") for words in (NAMES, COLOURS, THINGS))
        names = draw.sample(names, count)
        facts = [(draw.choice(colours), draw.choice(things)) for _ in names]
        sources = [_fact(kind, name, *fact) for name, fact in zip(names, facts, strict=True)]
        if kind == "distractors":
            sources[count // 2 :] = draw.sample(SCENERY.split(","), count - count // 2)
        asked = draw.randrange(count // 2 if kind == "distractors" else count)
        draw.shuffle(sources)
        return cls.of(kind, sources, names[asked], facts[asked])

    @classmethod
    def of(cls, kind: str, sources: list[str], name: str, fact: tuple[str, str]) -> "Case":
        """Return the case with sources that are documents of two sentences, or sentences of one text."""
        context = sources if kind == "two sentences" else " ".join(sources)
        return cls(context, f"{name} went to the park with the", " ".join(fact))

    @classmethod
    def pair(cls, kind: str, elsewhere: str, count: int, draw: random.Random) -> "tuple[Case, Case]":
        """Draw a statement that a source supports, and one that none supports whose words are "absent" or occur "apart"."""
        names, colours, things = (words.split(",") for words in (NAMES, COLOURS, THINGS))
        name, *others = draw.sample(names, count)
        colour, thing = draw.choice(colours), draw.choice(things)
        colours.remove(colour)
        things.remove(thing)
        facts = [(draw.choice(colours), draw.choice(things)) for _ in others]
        if elsewhere == "apart":
            facts[0], facts[1] = (colour, facts[0][1]), (facts[1][0], thing)
        sources = [_fact(kind, other, *fact) for other, fact in zip(others, facts, strict=True)]
        if kind == "distractors":
            sources[count // 2 :] = draw.sample(SCENERY.split(","), len(sources) - count // 2)
        draw.shuffle(sources)
        supported = list(sources)
        supported.insert(draw.randrange(count), _fact(kind, name, colour, thing))
        return tuple(cls.of(kind, texts, name, (colour, thing)) for texts in (supported, sources))

    def prompt(self, tokenizer: Any) -> Prompt:
        return make_prompt(tokenizer, self.context, self.query, "sentence")

    def written_by(self, model: Any, tokenizer: Any) -> "Case":
        """Return the case with the model's own response."""
        ids = self.prompt(tokenizer).ids[None]
        written = model.generate(ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False, pad_token_id=0)
        return replace(self, response=tokenizer.decode(written[0, ids.shape[1] :]))


def _fact(kind: str, name: str, colour: str, thing: str) -> str:
    return f"{name} had a {thing}. It was {colour}." if kind == "two sentences" else f"{name} had a {colour} {thing}."


def lds(scores: Tensor, present: Tensor, outputs: Tensor) -> float:
    """Return the rank correlation of the outputs with the summed scores of the sources that are present."""
    return float(spearmanr((present.double() @ scores).numpy(), outputs.numpy()).statistic)


def contextcite(present: Tensor, tokens: Tensor) -> Tensor:
    """Return the weights of a LASSO on the logit of the response's probability per token."""
    mean = tokens.mean(1)
    logits = mean - torch.log1p(-mean.exp())
    return torch.tensor(Lasso(alpha=0.01, max_iter=10_000).fit(present.double().numpy(), logits.numpy()).coef_)


def inseq_scores(model: Any, prompt: Prompt, written: Tensor) -> Tensor | None:
    """Return the scores of sources by inseq, or None where it is not installed."""
    try:
        import inseq
    except ImportError:
        return None
    tokenizer = copy.deepcopy(model.story_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    attribution = inseq.load_model(model, "input_x_gradient", tokenizer=tokenizer)
    texts = [tokenizer.decode(ids[1:]) for ids in (prompt.ids, torch.cat([prompt.ids, written]))]
    found = attribution.attribute(*texts, show_progress=False)[0].aggregate()
    tokens = found.target_attributions[: len(prompt)].nan_to_num().sum(1).double()
    return tokens.cpu() @ prompt.membership.double().T


def row(model: Any, tokenizer: Any, kind: str, count: int, ablation: Any, n: int) -> str:
    draw, found, costs = random.Random(f"{kind} {count}"), [], []
    for number in range(CONTEXTS):
        case = Case.make(kind, count, draw).written_by(model, tokenizer)
        before = time.perf_counter()
        attribution = whence.sources(
            model, case.context, case.query, case.response, tokenizer=tokenizer, statements=[case.response],
            n_ablations=n - SUPPORT, ablation=ablation, progress=False,
        )  # fmt: skip
        spent = time.perf_counter() - before
        prompt = case.prompt(tokenizer)
        written = encode_response(tokenizer, prompt, case.response)
        likelihood = ResponseLikelihood(model, prompt, written, ablation == "mask")
        before = time.perf_counter()
        for _ in range(3):
            model(torch.cat([prompt.ids, written])[None])
        costs.append(3 * spent / (time.perf_counter() - before))
        generator = torch.Generator().manual_seed(number)
        present = torch.rand(TRUTHS + n + 5, count, generator=generator) < 0.5
        tokens = likelihood(present)
        truth, outputs = present[:TRUTHS], tokens[:TRUTHS].sum(1)
        by_lasso = [contextcite(present[TRUTHS : TRUTHS + m], tokens[TRUTHS : TRUTHS + m]) for m in (n + 1, n + 5)]
        by_inseq = inseq_scores(model, prompt, written)
        scores = [attribution.scores[0], attribution.relevance[0], *by_lasso, *([] if by_inseq is None else [by_inseq])]
        found.append([lds(s, truth, outputs) for s in scores])
    cells = [_interval(column) for column in torch.tensor(found).nan_to_num().T]
    cells += ["–"] * (5 - len(cells)) + [f"{median(costs):.0f}"]
    print(line := f"| {kind} | {count} | {ablation} | 1 pass + {n} | {' | '.join(cells)} |", flush=True)
    return line


def support_row(model: Any, tokenizer: Any, kind: str, elsewhere: str, count: int) -> str:
    truth, found = [], []
    for number in range(CONTEXTS):
        pair = Case.pair(kind, elsewhere, count, random.Random(f"{kind} {elsewhere} {count} {number}"))
        for case, supported in zip(pair, (True, False), strict=True):
            attribution = whence.sources(
                model, case.context, case.query, case.response, tokenizer=tokenizer, statements=[case.response],
                progress=False,
            )  # fmt: skip
            prompt = case.prompt(tokenizer)
            likelihood = ResponseLikelihood(model, prompt, encode_response(tokenizer, prompt, case.response), False)
            without = float(likelihood(torch.zeros(1, len(prompt.sources), dtype=torch.bool)).sum())
            truth.append(supported)
            statement = attribution.statements[0].log_probability
            found.append([float(attribution.support[0]), statement - without, float(attribution.scores.max())])
    areas = [f"{roc_auc_score(truth, column):.3f}" for column in zip(*found, strict=True)]
    print(line := f"| {kind} | {elsewhere} | {count} | {' | '.join(areas)} |", flush=True)
    return line


def _interval(values: Tensor) -> str:
    """Return the mean with a 95 % interval."""
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def main(data: Path) -> None:
    warnings.simplefilter("ignore")  # of weak contexts, and of inseq
    torch.set_num_threads(2)
    model, tokenizer = story_model(data), story_tokenizer(data)
    model.story_tokenizer = tokenizer
    cells = [
        *[("facts", 4, a, 8) for a in ("remove", "mask")], *[("facts", 8, "remove", n) for n in (4, 8, 16)],
        ("facts", 8, "mask", 8), ("two sentences", 8, "remove", 8), ("distractors", 8, "remove", 8),
        *[("facts", k, a, k) for k in (16, 32) for a in ("remove", "mask")],
    ]  # fmt: skip
    rows = [row(model, tokenizer, *cell) for cell in cells]
    kinds = [("two sentences", "absent", 8), ("distractors", "absent", 8)]
    kinds += [("facts", elsewhere, count) for elsewhere in ("absent", "apart") for count in (4, 8, 16, 32)]
    support = [support_row(model, tokenizer, *cell) for cell in kinds]
    versions = peers.versions("transformers", "scikit-learn", "inseq")
    title = f"# The sources of a response\n\n{versions}; {CONTEXTS} contexts a row, mean ± 95 % interval.\n"
    middle = ["", "## Nothing in the context supports the statement: area under the ROC curve", "", *SUPPORT_HEAD]
    peers.write("sources", title, [*HEAD, *rows, *middle, *support])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
