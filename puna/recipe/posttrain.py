"""From a base model to a measured chat model: [synthesize], [sft], [reward], [dpo], [posttrain] and [evals]."""

from typing import Literal

from pydantic import Field, model_validator

from puna.recipe.knobs import Knobs
from puna.recipe.lora import Lora
from puna.recipe.synthesis import Synthesis
from puna.recipe.training import Training


class Synthesize(Synthesis):
    """Chats made from the corpus, from arithmetic problems and, where asked, by a model (section 4.3)."""

    tool_chats: int = Field(12_000, ge=0)
    """Arithmetic dialogues that call the calculator, for SFT."""
    max_turns: int = Field(7, ge=1)
    """Problems in one such dialogue, at most."""
    plain_chats: int = Field(1_000, ge=0)
    """Arithmetic dialogues without a tool at hand, for SFT."""
    question_chats: int = Field(6_000, ge=0)
    """Question-answer chats derived from corpus documents, for SFT."""
    preference_problems: int = Field(2_000, ge=0)
    """Arithmetic problems for DPO, none of them in the SFT chats."""
    held_out_problems: int = Field(1_000, ge=1)
    """Arithmetic problems for evaluation; their operand pairs occur nowhere in training."""
    held_out_questions: int = Field(500, ge=1)
    """Questions of each kind on held-out documents, for evaluation."""
    max_operand: int = Field(99, ge=9)
    """Operands are drawn from 0 to this."""
    call_chats: int = Field(0, ge=0)
    """Dialogues of single, nested, parallel and no calls that [posttrain] begins with, made by rule."""
    call_prompts: int = Field(0, ge=0)
    """Problems of these kinds, in equal parts, that the rounds divide between them and sample from."""
    call_validation: int = Field(1_000, ge=4)
    """Held-out problems of these kinds that decide what a round keeps."""
    call_held_out: int = Field(4_000, ge=4)
    """Held-out problems of these kinds that nothing is decided by: what is reported."""


class Finetuning(Training):
    """What SFT, the reward model and DPO have in common; batch and epochs are ours."""

    batch_rows: int = Field(64, ge=1)
    epochs: int = Field(1, ge=1)
    peak_lr: float = Field(1e-5, gt=0)
    """Sections 4.1.3 and 4.1.4; the paper gives no value for the reward model."""
    warmup_steps: int = Field(10, ge=0)
    lora: Lora = Lora()


class Sft(Finetuning):
    """Supervised finetuning: cross-entropy on assistant tokens (section 4.1.3)."""

    epochs: int = Field(2, ge=1)
    weights: dict[str, float] = {}
    """How many times in an epoch a chat is read, by its `source`; 1 if it is not named. The paper repeats sources of
    high quality and reads a part of others (section 4.3)."""
    warmup_steps: int = Field(100, ge=0)

    @model_validator(mode="after")
    def weights_are_not_negative(self) -> "Sft":
        if odd := {name: weight for name, weight in self.weights.items() if weight < 0}:
            raise ValueError(f"weights={odd}: a source is read 0 times or more")
        return self


class Reward(Finetuning):
    """The reward model: ranked answers to a prompt (section 4.1.2). The paper gives no hyper-parameters for it."""


class Posttrain(Knobs):
    """Post-training in rounds of reward model, rejection sampling, SFT and DPO (section 4.1)."""

    rounds: int = Field(0, ge=0)
    """Rounds (the paper has six, section 4.1.6); with 0 the stage `rounds` is made only when it is named."""
    samples: int = Field(10, ge=2, le=63)
    """Responses sampled for a prompt (10 to 30, section 4.2.2)."""
    retries: int = Field(0, ge=0)
    """How many times a training problem is sampled again while none of its responses is right."""
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(64, ge=1)
    """Longest sampled response."""
    choose: Literal["reward", "execution"] = "reward"
    """What picks the response that SFT learns: the reward model, if it beats a random pick on held-out prompts, or
    the first that is right when its calls are executed. For tool use the paper samples without a reward model."""
    pairs_per_prompt: int = Field(2, ge=1)
    """Preference pairs from the responses to a prompt, at most."""
    problems_per_chat: int = Field(1, ge=1)
    """Solved problems that SFT learns as one dialogue: ours, to save prompts."""
    sft_from: Literal["pretrained", "best"] = "pretrained"
    """What the SFT of a round begins with: the pretrained model, as in the paper (section 4.1.3), or the best model so
    far, which takes fewer tokens."""
    average: list[float] = Field([1.0, 0.5], min_length=1)
    """The models that are averaged at each stage (section 4.1.5), each by its multiple of the stage's peak_lr; each
    has an order of the data of its own."""

    controls: list[Literal["sft", "on", "off"]] = []
    """Train, too, what the rounds are compared with: "sft" is SFT on the first chats alone, as many tokens as the
    training that the rounds' models came from; "on" and "off" are SFT on the solutions of all problems, with the tool
    and without it, as many tokens as the rounds' SFT."""

    @model_validator(mode="after")
    def multiples_are_positive(self) -> "Posttrain":
        if min(self.average) <= 0:
            raise ValueError(f"average={self.average}: multiples of a learning rate are above 0")
        return self


class Dpo(Finetuning):
    """Direct preference optimization on pairs labelled by execution (section 4.1.4)."""

    batch_rows: int = Field(8, ge=1)
    """Rows of a step; pairs are packed into rows, each its prompt once and both responses."""
    weight_decay: float = Field(0.0, ge=0)
    beta: float = Field(0.1, gt=0)
    """Section 4.1.4."""
    nll: float = Field(0.2, ge=0)
    """Weight of the negative log-likelihood of the chosen response (section 4.1.4)."""
    mask_format: bool = True
    """Leave header and termination tokens out of the preference in both responses (section 4.1.4)."""
    samples: int = Field(8, ge=2)
    """Responses sampled for each problem."""
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(64, ge=1)
    """Longest sampled response."""
    pairs_per_problem: int = Field(1, ge=1)
    """Pairs that one prompt gives, at most; the rounds give DPO so many of their newest."""


class Evals(Knobs):
    """Held-out bits per byte, tool calls and chat questions, each with a 95% interval (section 5)."""

    batch: int = Field(128, ge=1)
    """Problems generated at once."""
    max_tokens: int = Field(64, ge=1)
    """Longest reply."""
    held_out_bytes: int = Field(2_000_000, ge=1000)
    """Held-out text that is scored, at most, in UTF-8 bytes."""
