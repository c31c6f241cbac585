# SPDX-License-Identifier: MIT
"""Grammars as masks: compiled over a vocabulary, walked token by token. All that knows llguidance.

In: a `Constraint`; the tokens of an answer. Out: packed masks, bit i of word i // 32 for token i, set where the
token may come next. Bytes of tokens are what parsers of answers see: markers of dialects are text wherever the
vocabulary calls them special, and all other special tokens never are. `Compiler` keeps compiled grammars by
content, bounded; a walk is a copy of one (about 0.1 ms for 128 tools) and is walked by one thread at a time.

Nothing here raises for what a grammar or a model does: a `Walk` that cannot go on says why in `error`. Fuel
bounds what one mask may cost, so a grammar that explodes ends its request and delays no other for long.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import RequestError
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.families import FAMILIES, REASONING

COMPILED_MAX: Final = 64
"""Compiled grammars kept, and the text of all of them: 128 tools are 90 kB, and compiled 3 to 8 MB."""
COMPILED_BYTES_MAX: Final = 4 << 20
CHECKED_MAX: Final = 4096
_SPECIAL: Final = b"\xff"  # begins no text, so no grammar over text allows such a token
_PARALLEL_MIN: Final = 4  # masks made at once from which threads pay
_LIMITS: Final = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""The library's fuel: a mask stops after about 15 ms of lexing and 3 ms of parsing, a compilation after 20 ms of
preparing its lexer. Half of it already ends honest schemas at their first mask."""


class Checked:
    """Grammars that are known to compile, so that what is wrong with one is said before any work."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, constraint: Constraint) -> None:
        """Raise the `RequestError` of a grammar that does not compile; takes milliseconds, so in a thread."""
        key = _key(constraint)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return
        said = LLMatcher.validate_grammar(constraint.grammar, limits=_LIMITS)
        if said and not said.startswith("WARNING"):
            raise refusal(constraint, said)
        with self._lock:
            self._known[key] = None
            while len(self._known) > CHECKED_MAX:
                self._known.popitem(last=False)


def refusal(constraint: Constraint, said: str) -> RequestError:
    """Word what the compiler says for whoever wrote the grammar."""
    cause = said.strip().splitlines()[0][:500] if said.strip() else "it does not compile"
    return RequestError(f"{constraint.param}: {cause}", code="invalid_value", param=constraint.param)


class Vocabulary:
    """The tokens of a model as a grammar sees them; takes about a second to make for 150k."""

    def __init__(self, tokens: list[bytes]) -> None:
        """`tokens` are the bytes of each id; of those that are no text they begin with 0xFF."""
        self.size = len(tokens)
        """Ids of the tokenizer. A mask has one bit more, which says that the answer may end."""
        self.words = -(-(self.size + 1) // 32)
        end = _SPECIAL + b"<|end of answer|>"
        self.tokenizer = LLTokenizer(TokenizerWrapper(_Table([*tokens, end])))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        return cls(_bytes_of(tokenizer))

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read a model directory's tokenizer. Raises `SetupError`."""
        return cls.of(Tokenizer.load(directory))


class _Table:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [i for i, token in enumerate(tokens) if token.startswith(_SPECIAL)]

    def __call__(self, _: bytes) -> list[int]:
        return []  # only forced text would be encoded, and grammars are written without forcing


class Walk:
    """Where one answer stands in its grammar."""

    __slots__ = ("_matcher",)

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def matcher(self) -> LLMatcher:
        return self._matcher

    @property
    def error(self) -> str:
        """Why it cannot go on; empty while it can."""
        return self._matcher.get_error() if self._matcher.is_error() else ""

    @property
    def stuck(self) -> bool:
        """It cannot go on because no token fits, rather than for what it would cost."""
        return self.error.startswith("NoExtension")

    def take(self, token: int) -> bool:
        """Go on by a token; False if the grammar does not have it here."""
        return self._matcher.consume_token(token)

    def copy(self) -> Walk:
        return Walk(self._matcher.deep_copy())


class Masks:
    """Fills the masks of several walks at once, on threads of its own where there are many."""

    def __init__(self, vocabulary: Vocabulary, threads: int) -> None:
        self._words = vocabulary.words
        self._threads = threads
        self._executor: LLExecutor | None = None

    def fill(self, walks: Sequence[Walk], out: NDArray[np.int32]) -> None:
        """Write the mask of each walk into its row of out [n, words]; no lock of Python's is held meanwhile.

        A walk that fails leaves a row that means nothing, and its `error`.
        """
        assert out.shape[1] == self._words
        assert out.flags.c_contiguous
        if len(walks) < _PARALLEL_MIN or self._threads < 2:
            for row, walk in zip(out, walks, strict=True):
                walk.matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            return
        if self._executor is None:
            self._executor = LLExecutor(self._threads)
        wanted = [(walk.matcher, row) for row, walk in enumerate(walks)]
        self._executor.unsafe_compute_mask_ptr(wanted, out.ctypes.data, out.shape[1] * 4, len(out))


class Compiler:
    """Compiles constraints in a thread of its own, and keeps the latest by content."""

    def __init__(self, vocabulary: Future[Vocabulary], threads: int = 1) -> None:
        self._vocabulary = vocabulary
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grammar")
        self._kept: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def start(self, constraint: Constraint) -> Future[Walk]:
        """Begin a walk; done at once where the grammar is known. Its failure is a `RequestError`."""
        key = _key(constraint)
        known = self._known(key)
        if known is not None:
            done: Future[Walk] = Future()
            done.set_result(Walk(known.deep_copy()))
            return done
        return self._pool.submit(self._compile, key, constraint)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, key: bytes, constraint: Constraint) -> Walk:
        known = self._known(key)  # by whoever stood before us in the queue
        if known is None:
            known = compiled(constraint, self._vocabulary.result())
            self._keep(key, known, len(constraint.grammar))
        return Walk(known.deep_copy())

    def _keep(self, key: bytes, matcher: LLMatcher, size: int) -> None:
        with self._lock:
            self._kept[key], self._sizes[key] = matcher, size
            while len(self._kept) > COMPILED_MAX or sum(self._sizes.values()) > COMPILED_BYTES_MAX:
                oldest, _ = self._kept.popitem(last=False)
                del self._sizes[oldest]

    def _known(self, key: bytes) -> LLMatcher | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found


def _key(constraint: Constraint) -> bytes:
    return hashlib.blake2b(constraint.grammar.encode(), digest_size=16).digest()


def compiled(constraint: Constraint, vocabulary: Vocabulary) -> LLMatcher:
    """A grammar over a vocabulary; `RequestError` if it does not compile."""
    matcher = LLMatcher(vocabulary.tokenizer, constraint.grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise refusal(constraint, matcher.get_error())
    return matcher


def _bytes_of(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of every id."""
    markers = {token for dialect in FAMILIES.values() for token in dialect.tokens}
    markers |= {marker for form in REASONING.values() for marker in (form.open, form.close)}
    table = [b""] * tokenizer.vocab_size
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token(token_id)
        if token_id in tokenizer.special_ids and token not in markers:
            table[token_id] = _SPECIAL + token.encode()
        elif tokenizer.byte_table is not None:
            table[token_id] = tokenizer.byte_table[token_id]
        else:
            table[token_id] = _fallback_bytes(token)
    return table


def _fallback_bytes(token: str) -> bytes:
    """Bytes of a token as SentencePiece spells it: a bar for a space, `<0xNN>` for a byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()
