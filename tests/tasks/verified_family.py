"""A task family for tests: `verified/NAME` scores by the verifier NAME."""

from vespo_jax.tasks import families, verifiers


@families.register("verified")
def verified(dataset, options):
  return Verified(dataset, options)


class Verified:
  version = "1"

  def __init__(self, dataset, options):
    self.name, self.options = f"verified/{dataset}", dict(options)
    self._verify = verifiers.make(dataset, **options)

  def generate(self, seed, limit):
    yield from ()

  def prompt(self, example):
    return example.question

  def score(self, example, response):
    return self._verify(response, example.answer, example.metadata)
