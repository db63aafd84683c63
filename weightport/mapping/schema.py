"""The shape of a mapping file, defined once: the loader checks it, and the JSON Schema is generated from it.

Promise: what the loader accepts is valid by the schema. Limit: only the shape; names of layouts, patterns, files and
whatever depends on two keys at once are looked at by :mod:`weightport.mapping.build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

#: The pattern of a scope: no slash at either end, no empty part, no braces (a scope is no name pattern).
SCOPE = r"^([^/{}]+(/[^/{}]+)*)?$"
#: A source's name: it is told from a path on the command line, and is a scope.
SOURCE_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"
SHA256 = r"^[0-9a-fA-F]{64}$"
AXIS_LIMIT = 64

# A union has one branch for each kind of value, so a mistake inside one is never reported for the others. The tags
# begin with a character that tells them from keys in pydantic's locations.
TAG = "\0"
TEXT, NUMBER, LIST, TABLE = "\0text", "\0number", "\0list", "\0table"


def _kind(value: Any) -> str | None:
    return {str: TEXT, int: NUMBER, list: LIST, dict: TABLE}.get(type(value))


def _by_kind(expected: str) -> Discriminator:
    return Discriminator(_kind, custom_error_type="expected", custom_error_message=expected)


def _key(description: str, *examples: Any, **more: Any) -> Any:
    """A key that may be left out. It may not be null: that would be a second way to say nothing."""
    return Field(default_factory=lambda: None, description=description, examples=list(examples) or None, **more)


Name: TypeAlias = Annotated[str, Field(min_length=1)]
Scope: TypeAlias = Annotated[str, Field(pattern=SCOPE)]
Axis: TypeAlias = Annotated[int, Field(ge=-AXIS_LIMIT, lt=AXIS_LIMIT)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Size: TypeAlias = Annotated[int, Field(ge=1)]
Names: TypeAlias = Annotated[list[Name], Field(min_length=1)]
Table: TypeAlias = dict[str, Any]
Direction: TypeAlias = Literal["forward", "backward"]
Arguments: TypeAlias = Annotated[
    Annotated[Table, Tag(TABLE)] | Annotated[int | float, Tag(NUMBER)],
    Discriminator(
        lambda value: NUMBER if type(value) is float else _kind(value),
        custom_error_type="expected",
        custom_error_message="a table of arguments, or the number of a constant",
    ),
]
Initialize: TypeAlias = Annotated[
    Annotated[Name, Tag(TEXT)]
    | Annotated[Annotated[dict[str, Arguments], Field(min_length=1, max_length=1)], Tag(TABLE)],
    _by_kind("an initializer such as zeros or {glorot_uniform: {seed: 7}}"),
]


class Shape(BaseModel):
    """A table of the mapping file: no other keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class AverageShape(Shape):
    """Moving averages under a name of their own."""

    ema: Scope = Field(min_length=1, description="The average's name, below its variable's.", examples=["my_average"])


Digest: TypeAlias = Annotated[str, Field(pattern=SHA256)] | None
Prefer: TypeAlias = Annotated[
    Annotated[Literal["ema"], Tag(TEXT)] | Annotated[AverageShape, Tag(TABLE)],
    _by_kind("ema, or {ema: NAME} with the name of the moving averages"),
]
_DIGEST = "The SHA-256 of the one file that this mapping is for."
_PREFER = "Read moving averages (`NAME/ExponentialMovingAverage`) in the place of the variables that have one."


class SourceShape(Shape):
    """What the source's names have in common, and which file it is."""

    scope: Scope = Field("", description="Stands before every source name of this mapping; '' is the root.")
    sha256: Digest = Field(None, description=_DIGEST)
    prefer: Prefer = _key(_PREFER, "ema", {"ema": "my_average"})


class NamedSourceShape(Shape):
    """A further model to take weights from. Its tensors stand below the scope of its name."""

    path: Name = _key("A model in the mapping's folder, unless the caller names another.", "vectors.npz")
    sha256: Digest = Field(None, description=_DIGEST)
    prefer: Prefer = _key(_PREFER, "ema", {"ema": "my_average"})


class TargetShape(Shape):
    """What the target's names have in common."""

    scope: Scope = Field("", description="Stands before every target name of this mapping; '' is the root.")


class SizesShape(Shape):
    """How large a cell is, where its tensors do not tell. Any other cell has to have these sizes."""

    input: Size = Field(description="The first layer's inputs.", examples=[64])
    units: Size = Field(description="Of every layer and direction.", examples=[128])
    layers: Size = Field(1, description="How many layers.")
    directions: Literal[1, 2] = Field(1, description="2 if it is bidirectional.")


class CellShape(Shape):
    """A whole RNN cell, or a stack of layers and directions. What is left out is as the layout or the file says."""

    layout: Name = Field(
        description="How the cell is packed; `weightport layouts` lists them.", examples=["lstm.keras"]
    )
    scope: Scope = Field(description="Where the cell is; '' is the root.", examples=["encoder/lstm"])
    forget_bias: float = _key("What is added to the forget gate at run time, not stored.", 1.0)
    gates: Annotated[
        Annotated[Names, Tag(LIST)] | Annotated[Annotated[dict[str, Name], Field(min_length=1)], Tag(TABLE)],
        _by_kind("a list of gates, or a table gate: name"),
    ] = _key("The gates in another order, or under other names.", ["i", "f", "g", "o"])
    activation: Name = _key("The cell's activation.", "tanh")
    recurrent_activation: Name = _key("The gates' activation.", "sigmoid")
    reset: Literal["before", "after"] = _key("A GRU's reset gate acts before or after the matrix product.", "after")
    layers: Annotated[
        Annotated[Count, Tag(NUMBER)]
        | Annotated[Annotated[list[Count], Field(min_length=1, json_schema_extra={"uniqueItems": True})], Tag(LIST)],
        _by_kind("a layer's number, or a list of them"),
    ] = _key("These layers only, counted from 0.", 0, [0, 1])
    directions: Annotated[
        Annotated[Direction, Tag(TEXT)]
        | Annotated[
            Annotated[list[Direction], Field(min_length=1, json_schema_extra={"uniqueItems": True})], Tag(LIST)
        ],
        _by_kind("forward, backward, or a list of them"),
    ] = _key("These directions only.", "forward")
    sizes: SizesShape = _key(
        "How large it is: of a cell that is one vector, whose length does not tell.",
        {"input": 64, "units": 128, "layers": 2, "directions": 1},
    )


class RearrangeShape(Shape):
    """A pattern and the sizes of axes that it takes apart."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Size] = Field(init=False)
    pattern: Name = Field(description="As in einops.", examples=["(h d) in -> in h d"])


class WordsShape(Shape):
    """A file of tab-separated columns, counted from 0."""

    file: Name = Field(description="A file in the mapping's folder.", examples=["words.tsv"])
    word: Count = Field(0, description="The column of the words.")
    row: Count = _key("The column of the words' rows. Left out: the first line has row 0.", 1)
    header: bool = _key("Whether the first line names the columns.", True)


Words: TypeAlias = Annotated[
    Annotated[Name, Tag(TEXT)] | Annotated[WordsShape, Tag(TABLE)],
    _by_kind("a file of words, or {file: ..., word: COLUMN, row: COLUMN}"),
]


class VocabShape(Shape):
    """Rows moved by word."""

    from_: Words = Field(alias="from", description="The source's words, a file in the mapping's folder.")
    to: Words = Field(description="The target's words, a file in the mapping's folder.")
    axis: Axis = Field(0, description="The axis that runs over words.")
    missing: Initialize = _key(
        "What words get that only the target has: an initializer, or mean. Left out: such a word is an error.",
        "mean",
        {"truncated_normal": {"stddev": 0.02}},
    )


Pair: TypeAlias = Annotated[list[Count], Field(min_length=2, max_length=2)]
Pairs: TypeAlias = Annotated[list[Pair], Field(min_length=1)]


class PadShape(Shape):
    """How much is added around a tensor, and of what."""

    widths: Pairs = Field(description="[before, after] for each axis.", examples=[[[0, 2], [0, 0]]])
    value: float = Field(0.0, description="What it is filled with.")


class SplitShape(Shape):
    """Parts along an axis."""

    axis: Axis = Field(description="The axis that is cut.")
    sizes: Annotated[list[Size], Field(min_length=1)] = _key("The parts' sizes; left out: equal parts.", [128, 64])


NameOrCell: TypeAlias = Annotated[
    Annotated[Name, Tag(TEXT)] | Annotated[Names, Tag(LIST)] | Annotated[CellShape, Tag(TABLE)],
    _by_kind("a name pattern, a list of them, or a cell such as {layout: lstm.keras, scope: encoder}"),
]


class RuleShape(Shape):
    """One rule: a cell, tensors by name, or tensors to initialize. Operations are applied in the order given here."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["from"], "not": {"required": ["initialize"]}},
                {"required": ["initialize"], "not": {"required": ["from"]}},
            ]
        }
    )

    from_: NameOrCell = _key("Source tensors, or a cell.", "bert/layer_{n}/kernel", alias="from")
    to: NameOrCell = Field(description="Target tensors, or a cell.", examples=["encoder.layer.{n}.weight"])
    as_: Literal["initial", "constant"] = Field(
        "initial", alias="as", description="constant: the targets are frozen; initial: they go on training."
    )
    optional: bool = Field(False, description="Matching nothing is no error.")
    slots: bool = Field(False, description="Optimizer slots go where their variables go.")
    initialize: Initialize = _key(
        "Fill targets that the source does not cover.", "zeros", {"glorot_uniform": {"seed": 7}}
    )
    dequantize: bool = _key("Quantized tensors become floats (true), or are moved as they are stored (false).", True)
    concat: Axis = _key("Join several sources along this axis.", 1)
    slice: Annotated[
        Annotated[Name, Tag(TEXT)] | Annotated[Names, Tag(LIST)],
        _by_kind("slices such as '0:10, :', or a list of them, one for each axis"),
    ] = _key("Keep a part: one slice for each axis from the first on, with steps above zero.", "0:10, :")
    reshape: list[Annotated[int, Field(ge=-1)]] = _key("The new shape; one -1 is worked out.", [-1, 128])
    rearrange: Annotated[
        Annotated[Name, Tag(TEXT)] | Annotated[RearrangeShape, Tag(TABLE)],
        _by_kind("a pattern such as 'in out -> out in', or {pattern: ..., AXIS: SIZE}"),
    ] = _key(
        "Permute, split and merge axes, as in einops.", "in out -> out in", {"pattern": "(h d) i -> i h d", "h": 8}
    )
    vocab: VocabShape = _key(
        "Move rows by word; of a cell, those of its inputs.", {"from": "old.txt", "to": "new.txt", "missing": "mean"}
    )
    pad: Annotated[
        Annotated[Pairs, Tag(LIST)] | Annotated[PadShape, Tag(TABLE)],
        _by_kind("a list of [before, after], one for each axis, or {widths: ..., value: ...}"),
    ] = _key("Add to the ends of axes.", [[0, 2], [0, 0]])
    scale: float = _key("Multiply by this.", 0.5)
    cast: Name = _key("Convert to this dtype, by numpy's or ml_dtypes' name.", "bfloat16")
    split: Annotated[
        Annotated[Axis, Tag(NUMBER)] | Annotated[SplitShape, Tag(TABLE)],
        _by_kind("an axis, or {axis: ..., sizes: [...]}"),
    ] = _key("Cut one source into several targets along this axis.", 0)


class LayoutVariantShape(Shape):
    """One of several packings of a layout."""

    # Which keys a layout has is the business of the layout tables: here are the shapes of those that have one.
    model_config = ConfigDict(extra="allow")
    title: str = ""
    tensors: dict[str, Any] = _key("Name under the cell's scope -> packing.", {"kernel": "wx[input (gate unit)]"})
    reset: str = _key("before or after.")
    forget_bias: float = _key("What the framework adds at run time.")
    cells: list[Name] = _key("The names that the framework gives to the cell's own scope.")


class LayoutShape(LayoutVariantShape):
    """A layout of the mapping's own, in the notation of weightport's tables."""

    source: Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[str], Tag(LIST)], _by_kind("text or a list")] = _key(
        "Where the packing is stated."
    )
    gates: Annotated[
        Annotated[list[Name], Tag(LIST)] | Annotated[dict[str, str], Tag(TABLE)],
        _by_kind("a list of gates, or a table gate: name"),
    ] = _key("In stored order.", ["i", "f", "g", "o"])
    gate_names: dict[str, str] = _key("Gate -> its text in names.")
    complement: list[Name] = _key("Gates stored with the opposite meaning.")
    derived: dict[str, str] = _key("Gates that follow from another one.")
    parameters: dict[Name, Names] = _key("Parameters of its own, and their axes.", {"gamma": ["gate", "unit"]})
    forget_gates: list[Name] = _key("The gates that the forget bias is added to; of an lstm: f.")
    activation: Name = _key("Of the cell.")
    recurrent_activation: Name = _key("Of the gates.")
    fixed: list[Name] = _key("What the framework always has so.")
    inner: str = _key("A scope that may stand between a layer's scope and its tensors.")
    separator: str = _key("What separates scopes in names: / or a dot.")
    directions: dict[str, str] = _key("forward and backward -> text in names.")
    variants: list[LayoutVariantShape] = _key("Several packings.")
    spellings: list[Table] = _key("Other names for the same tensors.")
    suffixes: bool = _key("Cells of one scope are told apart by _1, _2.")
    uniform: bool = _key("The layers that names tell are one module, of one number of units.")


class MappingShape(Shape):
    """How pretrained weights move from one model into another."""

    model_config = ConfigDict(title="weightport mapping, version 1")

    weightport: int = Field(ge=1, le=1, description="The version of the language.")
    description: str = Field("", description="For people.")
    source: SourceShape = Field(default_factory=SourceShape, description="The model that the weights come from.")
    sources: Annotated[
        dict[str, NamedSourceShape],
        Field(min_length=1, json_schema_extra={"propertyNames": {"pattern": SOURCE_NAME}}),
    ] = _key(
        "Further models to take weights from, by name; their tensors are NAME/...", {"vectors": {"path": "vectors.npz"}}
    )
    target: TargetShape = Field(default_factory=TargetShape, description="The model that they go to.")
    layouts: dict[str, LayoutShape] = _key("Layouts of the mapping's own, named KIND.FLAVOUR.")
    rules: list[RuleShape] = Field(min_length=1, description="The first rule that claims a target wins.")
    ignore: list[Name] = _key("Source tensors left behind on purpose.", ["**/Adam", "beta?_power"])
    keep: list[Name] = _key("Target tensors that keep their own value on purpose.", ["decoder/**"])


def schema() -> dict[str, Any]:
    """The JSON Schema (Draft 2020-12) of a mapping file."""
    generated = MappingShape.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


_ADAPTER = TypeAdapter(MappingShape)


def shape_errors(data: Any) -> list[Any]:
    """pydantic's error records (type, loc, input, ctx) for plain data."""
    try:
        _ADAPTER.validate_python(data)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []
