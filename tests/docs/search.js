// Query the search index of a built site with the code that Sphinx puts beside it, outside a browser.
// Usage: node search.js SITE QUERY...; prints one JSON list of "page#anchor" for each query, best first.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...queries] = process.argv.slice(2);
// All that the search touches of a page: a place for its progress, which is emptied.
global.document = {getElementById: () => null};
global._ready = () => {};
global.SPHINX_HIGHLIGHT_ENABLED = false;
global._ = (text) => text;
for (const name of ["_static/language_data.js", "_static/searchtools.js", "searchindex.js"])
  vm.runInThisContext(fs.readFileSync(path.join(site, name), "utf8"), {filename: name});
const search = vm.runInThisContext("Search");

for (const query of queries) {
  // The results are shown from the end of the list.
  const found = search._performSearch(...search._parseQuery(query)).reverse();
  console.log(JSON.stringify(found.map(([page, , anchor]) => page + anchor)));
}
