"""A metric of our own."""

from haiku_search.corpus import HAIKU


def season_at_1(targets, predictions):
    """Share of memories whose first answer, right or wrong, is a poem of the right season."""
    hits = [
        ranked[0] >= 0 and HAIKU[ranked[0]]["season"] == HAIKU[target.rows[0]]["season"]
        for target, ranked in zip(targets, predictions, strict=True)
    ]
    return {"season@1": sum(hits) / len(hits)}
