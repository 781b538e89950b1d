// The order of what a search finds: pages that explain come before those for reference, and answers before both.
// The points are those of Sphinx.
var Scorer = {
  score: ([page, , , , score]) => {
    if (/^(api|architecture|changelog|commands|format|glossary|limits|performance|related|decisions\/.*)$/.test(page))
      return score - 7;
    return page === "faq" ? score + 1 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
