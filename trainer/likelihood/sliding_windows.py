"""Texts that are longer than a model's window: every token is scored once, with as much before it as fits."""

from trainer.likelihood.log_likelihood import Request


def sliding(tokens: tuple[int, ...], start: int, window: int, stride: int) -> list[Request]:
    """Requests that together ask for ``tokens[start:]``, each token once.

    The first window takes what fits; each further one moves on by ``stride`` tokens, so that all of its tokens have at
    least ``window - stride`` tokens before them (the strided perplexity of the transformers documentation).

    Args:
        tokens: context and text.
        start: where scoring begins, at least 1.
        window: tokens that the model reads at once, at least 2.
        stride: tokens scored by each further window, at least 1 and below ``window``.

    Returns:
        Empty where there is nothing to score.
    """
    if not (1 <= stride < window and start >= 1):
        raise ValueError(f"expected 1 <= stride < window and start >= 1, got {stride=}, {window=}, {start=}")
    requests = []
    while start < len(tokens):
        # the last token of a request is only predicted, never read: a request may have window + 1 tokens
        end = min(len(tokens), max(window + 1, start + stride))
        begin = max(0, end - window - 1)
        requests.append(Request(tokens[begin:end], start - begin))
        start = end
    return requests
