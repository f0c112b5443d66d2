"""Continuous batching: a fixed number of row slots that sequences enter and leave as they end."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vespo_jax import models
from vespo_jax.models import KVCache, ModelSpec
from vespo_jax.models.cached_attention import PAGE
from vespo_jax.sampler import decode as device
from vespo_jax.sampler import placement
from vespo_jax.sampler.sequence import Decode, Sampled, Sampling, stop_cut
from vespo_jax.sampler.settings import Settings
from vespo_jax.types import Array, Params, Rollout, TokenIds

PROMPT_BUCKET = 16  # prompts are padded to such multiples, so few shapes are ever compiled
PREFILL_TOKENS = 512  # prompts are computed so many (padded) tokens at a time, or one by one
IDLE_FRACTION = 8  # with sequences waiting, decoding goes on until 1 / 8 of a lane's rows are idle
LANE_ROWS = 64  # the fewest rows of a lane: with less, reading the weights takes the time


@dataclasses.dataclass(eq=False)
class _Waiting:
  """Sequences that begin with the same tokens, and the cache row that holds those once computed."""

  members: list[Sampling]
  source: KVCache | None = None
  row: int = 0

  @property
  def tokens(self) -> np.ndarray:
    return self.members[0].tokens


class Engine:
  """Samples sequences in `slots` rows, each with its own place in the cache.

  What a sequence becomes depends on its prompt, its key and the weights alone: not on the slot it
  gets, on when it enters, or on what else is sampled. Give it weights with `adopt` before it works.

  On a CPU the rows are dealt to `lanes`, each with a cache of its own and decoded by a thread of
  its own: the layers of one step wait for one another, and between two of them cores would idle.

  Args:
    spec: of the policy.
    settings: how to sample; all sequences share them.
    slots: rows decoded together.
    longest_prompt: tokens of the longest prompt it will be given.
    steps: most decode steps of one `advance`.
    decode: token ids -> text; only stop strings need it.
    attention: one of `models.DECODE_ATTENTION`.
    mesh: from `placement.make_mesh`, to spread model and cache over; None: one device.

  Raises:
    ValueError: if there are stop strings and no `decode`, expert ids are asked of a dense model,
      this platform lacks the kernel, or the mesh does not divide the slots.
  """

  def __init__(
    self,
    spec: ModelSpec,
    settings: Settings,
    *,
    slots: int,
    longest_prompt: int,
    steps: int,
    decode: Decode | None = None,
    attention: str = "dense",
    mesh: Mesh | None = None,
  ):
    models.check_platform(models.DECODE_ATTENTION, attention, jax.default_backend())
    if settings.expert_ids and not spec.experts:
      raise ValueError("expert ids were asked of a model without experts")
    if mesh is not None and slots % mesh.size:
      raise ValueError(f"{slots} slots do not divide over {mesh.size} devices")
    self.settings, self.slots, self.longest_prompt = settings, slots, longest_prompt
    self.steps_done = 0  # decode steps since the start
    self._spec, self._steps, self._attention = spec, steps, attention
    self._mesh = mesh
    self._cut = stop_cut(decode, settings.stop_strings)
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._rows: list[Sampling | None] = [None] * slots
    self._version, self._params = -1, {}
    self._lanes = lanes(slots) if mesh is None else 1
    self._caches: list[KVCache] = []  # of each lane; slot b is row b // lanes of lane b % lanes

  @property
  def busy(self) -> bool:
    """Whether a sequence is running or waiting."""
    return bool(self._waiting) or self.running > 0

  @property
  def running(self) -> int:
    """Sequences in slots."""
    return sum(row is not None for row in self._rows)

  @property
  def idle_slots(self) -> int:
    """Slots that no sequence is in or waits for; below 0 if more wait than there are."""
    return self.slots - self.running - sum(len(group.members) for group in self._waiting)

  def stalled(self, limit: int) -> bool:
    """Whether every sequence runs and has `limit` tokens."""
    rows = [row for row in self._rows if row is not None]
    return not self._waiting and all(len(row.response) >= limit for row in rows)

  def adopt(self, version: int, params: Params, *, recompute: bool = False) -> None:
    """Samples with these weights from the next token on.

    With layers apart (`models.unstack`) they are held as they are, else as a copy that has them so.
    Running sequences keep the keys and values of their tokens; with `recompute` those are computed
    again by the new weights, as if prompt and response so far were the prompt.
    """
    self._version, self._params = version, models.unstack(params)
    if not self._caches:
      multiple = PROMPT_BUCKET if self._attention == "dense" else PAGE
      longest = self.longest_prompt + self.settings.max_new_tokens - 1
      slots = -(-longest // multiple) * multiple
      dtype = models.head_table(params).dtype
      size = (self.slots // self._lanes, slots, dtype, self._attention)
      self._caches = [
        placement.init_cache(self._mesh, self._spec, *size) for _ in range(self._lanes)
      ]
    for group in self._waiting:
      group.source = None  # computed by the old weights
    if recompute:
      running = [_Waiting([row]) for row in self._rows if row is not None]
      self._waiting.extendleft(reversed(running))
      self._rows = [None] * self.slots

  def release(self) -> None:
    """Forgets the weights, to make room for those that `adopt` will be given before it works."""
    self._params = {}

  def submit(
    self, key: Array, prompts: Sequence[TokenIds], group_ids: Sequence[int]
  ) -> list[Sampling]:
    """Queues `settings.samples_per_prompt` sequences for each prompt; returns them, prompt-major.

    The key of a sequence is `fold_in(key, group_id * samples_per_prompt + sample)`. Raises
    ValueError if there is no prompt, or one is empty or longer than the engine was made for.
    """
    self._check_fit(prompts)
    R, key_data = self.settings.samples_per_prompt, np.asarray(jax.random.key_data(key))
    sequences = []
    for prompt, group_id in zip(prompts, group_ids, strict=True):
      tokens, first = np.asarray(prompt, np.int32), int(group_id) * R
      members = [Sampling(tokens, int(group_id), first + i, key_data) for i in range(R)]
      self._waiting.append(_Waiting(members))
      sequences.extend(members)
    return sequences

  def replay(self, rollouts: Sequence[Rollout]) -> list[Sampling]:
    """Queues sequences whose tokens are given, not drawn; returns them.

    What becomes of each is what sampling its tokens here would have reported, by the same programs:
    with the weights, the settings and the number of slots that sampled them, the same bits. Tokens
    that could not have been sampled have log-prob -inf.

    Consecutive rollouts share what is computed of a common prompt. Raises ValueError if a prompt is
    as `submit` refuses it, or a response is empty or longer than `settings.max_new_tokens`.
    """
    self._check_fit([rollout.prompt_ids for rollout in rollouts])
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    if not 1 <= min(lengths) <= max(lengths) <= self.settings.max_new_tokens:
      raise ValueError(f"a response has not 1 to {self.settings.max_new_tokens} tokens")
    key_data = np.asarray(jax.random.key_data(jax.random.key(0)))  # nothing is drawn
    sequences = []
    for _, alike in itertools.groupby(rollouts, lambda rollout: list(rollout.prompt_ids)):
      members = [
        Sampling(np.asarray(r.prompt_ids, np.int32), r.group_id, r.sample_seed, key_data, given=r)
        for r in alike
      ]
      sequences.extend(members)
      self._waiting.append(_Waiting(members))
    return sequences

  def _check_fit(self, prompts: Sequence[TokenIds]) -> None:
    check_prompts(prompts)
    if max(map(len, prompts)) > self.longest_prompt:
      raise ValueError(f"a prompt is longer than {self.longest_prompt} tokens")

  def advance(self, limit: int | None = None) -> list[Sampling]:
    """Lets waiting sequences enter, decodes up to `steps` tokens; returns what ended.

    With a `limit`, no response grows beyond so many tokens: its row waits.
    """
    longest = self.settings.max_new_tokens
    limit = longest if limit is None else min(limit, longest)
    self._enter()
    if self.stalled(limit):
      return []
    busy = [lane for lane in range(self._lanes) if any(self._rows[lane :: self._lanes])]
    one = functools.partial(self._decode, limit)
    if len(busy) == 1:
      chunks = map(one, busy)
    else:
      with concurrent.futures.ThreadPoolExecutor(len(busy)) as threads:
        chunks = threads.map(one, busy)
    return self._harvest(dict(zip(busy, chunks, strict=True)))

  def _decode(self, limit: int, lane: int) -> device.Chunk:
    """Decodes the rows of one lane."""
    rows = self._rows[lane :: self._lanes]
    enough = len(rows) + 1
    if self._waiting:
      enough = max(1, len(rows) // IDLE_FRACTION - rows.count(None))
    self._caches[lane], chunk = device.decode(
      self._params,
      self._spec,
      self.settings.compiled(),
      self._caches[lane],
      self._device_rows(rows, limit),
      np.int32(enough),
      self._mesh,
    )
    return jax.device_get(chunk)

  def _enter(self) -> None:
    """Gives the free slots to the sequences that have waited longest."""
    free = collections.deque(i for i, row in enumerate(self._rows) if row is None)
    while free and self._waiting:
      if self._waiting[0].source is None:
        self._prefill()
      source = self._waiting[0].source
      moves = [([], []) for _ in self._caches]  # rows of the source, and those of the lane
      while free and self._waiting and self._waiting[0].source is source:
        group = self._waiting[0]
        self._rows[free[0]] = group.members.pop(0)
        row, lane = divmod(free.popleft(), self._lanes)
        for rows, moved in zip(moves[lane], (group.row, row), strict=True):
          rows.append(moved)
        if not group.members:
          self._waiting.popleft()
      for lane, (from_rows, to_rows) in enumerate(moves):
        rest = [0] * (self.slots // self._lanes - len(to_rows))
        self._caches[lane] = device.place(
          self._caches[lane],
          source,
          np.array(from_rows + rest, np.int32),
          np.array(to_rows + rest, np.int32),
          np.int32(len(to_rows)),
        )

  def _prefill(self) -> None:
    """Computes the first group's tokens but the last, with those of others of its size."""
    width = bucket(len(self._waiting[0].tokens) - 1)
    batch = max(1, PREFILL_TOKENS // width)
    groups = [
      group
      for group in self._waiting
      if group.source is None and bucket(len(group.tokens) - 1) == width
    ][:batch]
    tokens_PS, lengths_P = np.zeros((batch, width), np.int32), np.zeros(batch, np.int32)
    for row, group in enumerate(groups):
      lengths_P[row] = len(group.tokens) - 1
      tokens_PS[row, : lengths_P[row]] = group.tokens[:-1]
    ask = self.settings.expert_ids
    cache, ids_PSLA = device.prefill(
      self._params, self._spec, tokens_PS, lengths_P, ask, self._attention, self._mesh
    )
    ids_PSLA = np.asarray(ids_PSLA) if ask else None
    for row, group in enumerate(groups):
      group.source, group.row = cache, row
      for member in group.members:
        if ids_PSLA is not None and not member.response:
          member.prompt_expert_ids = ids_PSLA[row, : lengths_P[row]]

  def _device_rows(self, rows: Sequence[Sampling | None], limit: int) -> device.Rows:
    B = len(rows)
    width = next(len(row.key_data) for row in rows if row is not None)
    tokens_B, lengths_B, counts_B = (np.zeros(B, np.int32) for _ in range(3))
    keys_BX, seeds_B = np.zeros((B, width), np.uint32), np.zeros(B, np.uint32)
    limits_B, forced_CB = np.full(B, limit, np.int32), np.full((self._steps, B), -1, np.int32)
    for b, row in enumerate(rows):
      if row is not None:
        counts_B[b] = len(row.response)
        tokens_B[b] = row.response[-1] if row.response else row.prompt[-1]
        lengths_B[b] = len(row.prompt) + counts_B[b] - 1
        keys_BX[b], seeds_B[b] = row.key_data, row.seed % 2**32
        if row.given is not None:
          rest = row.given.response_ids[counts_B[b] :]
          limits_B[b] = min(limit, counts_B[b] + len(rest))
          forced_CB[: len(rest), b] = rest[: self._steps]
    live_B = np.array([row is not None for row in rows])
    arrays = (tokens_B, lengths_B, counts_B, keys_BX, seeds_B, live_B, limits_B, forced_CB)
    return device.Rows(*map(jnp.asarray, arrays))

  def _harvest(self, chunks: Mapping[int, device.Chunk]) -> list[Sampling]:
    """Gives every row what its lane sampled; frees and returns those that ended."""
    self.steps_done += max(int(chunk.steps) for chunk in chunks.values())
    ended = []
    for slot, row in enumerate(self._rows):
      if row is None:
        continue
      b, lane = divmod(slot, self._lanes)
      chunk, ids = chunks[lane], chunks[lane].expert_ids_CBLA
      n = int(chunk.sampled_B[b])
      if n == 0:
        continue
      mine = jax.tree.map(lambda x, n=n, b=b: x[:n, b], chunk.draws)
      part = Sampled(self._version, mine, None if ids is None else ids[: n + 1, b])
      row.extend(part, bool(chunk.stopped_B[b]), self.settings.max_new_tokens, self._cut)
      if row.finish:
        ended.append(row)
        self._rows[slot] = None
    return ended


def lanes(slots: int) -> int:
  """How many parts of so many rows are decoded at once: on a CPU at most one for each core, of
  equal sizes and at least `LANE_ROWS` each; else one."""
  if jax.default_backend() != "cpu":
    return 1
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  most = max(1, min(cores, slots // LANE_ROWS))
  return next(n for n in range(most, 0, -1) if slots % n == 0)


def bucket(tokens: int) -> int:
  """The width that so many tokens are computed at: 16, 32, 64, .. and at most twice as many."""
  return PROMPT_BUCKET << max(0, (tokens - 1) // PROMPT_BUCKET).bit_length()


def check_prompts(prompts: Sequence[TokenIds]) -> None:
  """Raises ValueError if there is no prompt, or one is empty."""
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError("every call needs at least one prompt, and every prompt at least one token")
