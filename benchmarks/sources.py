"""Which sentence made the model write this: agreement with deletions (LDS) per evaluation, beside ContextCite's estimator.

python benchmarks/sources.py ../shared/data   # prints the table and writes benchmarks/results/sources.md

The language model of stories; contexts "{name} had a {colour} {thing}.", the query "{name} went to the park with the", and
its response of six tokens. The truth is the log-probability of the response under 96 random deletions; LDS is its rank
correlation with the summed scores of the sentences left. ContextCite: LASSO (α = .01) on the logit of the probability per token
under as many random deletions as whence evaluates prompts besides its backward pass, and four more, which the pass may cost.
"""

import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.pop(0)  # a file beside this one is called as the library transformers

import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso
from torch import Tensor

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
import peers

peers.declare_torchvision_operators()

import whence  # noqa: E402
from support.story_model import story_model, story_tokenizer  # noqa: E402
from whence.contexts.likelihoods import ResponseLikelihood  # noqa: E402
from whence.contexts.prompt import encode_response, make_prompt  # noqa: E402
from whence.errors import ContextWarning  # noqa: E402

CONTEXTS, TRUTHS, WRITTEN = 20, 96, 6
NAMES = (
    "Lily,Tom,Mia,Ben,Sue,Max,Anna,Tim,Sam,Lucy,Jack,Amy,Bob,Sara,Joe,Kate,Leo,Emma,Dan,Ella,Rex,Nina,Bill,Rose,Finn,Ruby,Otto,"
    "Ivy,Hugo,Zoe,Carl,Jane"
)
COLOURS = "red,blue,green,big,small,pink,yellow,brown,old,new"
THINGS = "ball,kite,car,dog,cat,hat,box,bear,boat,book,cup,doll,bird,fish,toy,cake"
HEAD = [
    "| sentences | ablation | evaluations | whence, LDS | relevance alone | ContextCite | ContextCite + 4 |",
    "|---|---|---|---|---|---|---|",
]


@dataclass
class Case:
    """A context whose response is the model's own."""

    context: str
    query: str
    response: str

    @classmethod
    def make(cls, model: Any, tokenizer: Any, count: int, draw: random.Random) -> "Case":
        names, colours, things = (words.split(",") for words in (NAMES, COLOURS, THINGS))
        names = draw.sample(names, count)
        context = " ".join(f"{name} had a {draw.choice(colours)} {draw.choice(things)}." for name in names)
        query = f"{draw.choice(names)} went to the park with the"
        ids = tokenizer(f"{context} {query}", return_tensors="pt")["input_ids"]
        found = model.generate(ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False, pad_token_id=0)
        return cls(context, query, tokenizer.decode(found[0, ids.shape[1] :]))


def lds(scores: Tensor, present: Tensor, outputs: Tensor) -> float:
    """Return the rank correlation of the outputs with the summed scores of the sources that are present."""
    return float(spearmanr((present.double() @ scores).numpy(), outputs.numpy()).statistic)


def contextcite(present: Tensor, tokens: Tensor) -> Tensor:
    """Return the weights of a LASSO on the logit of the response's probability per token."""
    mean = tokens.mean(1)
    logits = mean - torch.log1p(-mean.exp())
    return torch.tensor(Lasso(alpha=0.01, max_iter=10_000).fit(present.double().numpy(), logits.numpy()).coef_)


def row(model: Any, tokenizer: Any, count: int, ablation: Any, n: int) -> str:
    draw, found = random.Random(count), []
    for number in range(CONTEXTS):
        case = Case.make(model, tokenizer, count, draw)
        attribution = whence.sources(
            model, case.context, case.query, case.response, tokenizer=tokenizer, statements=[case.response], n_ablations=n,
            ablation=ablation, progress=False,
        )  # fmt: skip
        prompt = make_prompt(tokenizer, case.context, case.query, "sentence")
        written = encode_response(tokenizer, prompt, case.response)
        likelihood = ResponseLikelihood(model, prompt, written, ablation == "mask")
        generator = torch.Generator().manual_seed(number)
        present = torch.rand(TRUTHS + n + 4, count, generator=generator) < 0.5
        tokens = likelihood(present)
        truth, outputs = present[:TRUTHS], tokens[:TRUTHS].sum(1)
        by_lasso = [contextcite(present[TRUTHS : TRUTHS + m], tokens[TRUTHS : TRUTHS + m]) for m in (n, n + 4)]
        found.append([lds(s, truth, outputs) for s in (attribution.scores[0], attribution.relevance[0], *by_lasso)])
    table = torch.tensor(found).nan_to_num()
    means, errors = table.mean(0), table.std(0) / len(table) ** 0.5
    cells = " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in zip(means.tolist(), errors.tolist(), strict=True))
    print(line := f"| {count} | {ablation} | 1 pass + {n} | {cells} |", flush=True)
    return line


def main(data: Path) -> None:
    warnings.simplefilter("ignore", ContextWarning)
    torch.set_num_threads(2)
    model, tokenizer = story_model(data), story_tokenizer(data)
    cells = [(8, "remove", 4), (8, "remove", 8), (8, "remove", 16), (8, "mask", 8), (16, "remove", 16), (16, "mask", 16),
             (32, "remove", 32), (32, "mask", 32)]  # fmt: skip
    rows = [row(model, tokenizer, *cell) for cell in cells]
    title = f"# The sources of a response\n\n{peers.versions('transformers', 'scikit-learn')}; {CONTEXTS} contexts a row.\n"
    peers.write("sources", title, [*HEAD, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
