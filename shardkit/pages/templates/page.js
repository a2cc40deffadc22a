// A click on the head of a column sorts the table by it; another click reverses the order.
document.querySelectorAll("th").forEach(function (head) {
  head.addEventListener("click", function () {
    var at = head.cellIndex, body = head.closest("table").tBodies[0], up = head.dataset.up !== "1";
    head.closest("tr").querySelectorAll("th").forEach(function (each) { delete each.dataset.up; });
    head.dataset.up = up ? "1" : "0";
    var value = function (row) { var cell = row.cells[at]; return cell.dataset.v || cell.textContent; };
    Array.from(body.rows).sort(function (a, b) {
      var x = value(a), y = value(b), n = x - y;
      return (isNaN(n) ? (x < y ? -1 : x > y ? 1 : 0) : n) * (up ? 1 : -1);
    }).forEach(function (row) { body.appendChild(row); });
  });
});

// The charts have the colours of the page, so they are drawn again when these change.
(function () {
  var charts = JSON.parse(document.getElementById("charts").textContent), views = [];
  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function config(legendColumns) {
    var text = colour("text"), soft = colour("soft"), line = colour("line");
    var font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent", font: font, padding: { left: 0, right: 4, top: 2, bottom: 4 },
      view: { stroke: null },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12,
        titleFontSize: 12, titleFontWeight: "normal", labelLimit: 190 },
      axisX: { grid: false, labelFlush: true },
      legend: { labelColor: soft, titleColor: soft, labelFontSize: 12, orient: "top", title: null, symbolType: "square",
        columns: legendColumns },
      title: { color: text }, text: { color: text, fontSize: 12 }, rule: { color: soft },
      range: { category: ["blue", "red", "amber", "teal", "violet", "grey"].map(colour) }
    };
  }
  // In a specification a colour is "--name": that of the page.
  function coloured(value) {
    if (typeof value === "string") { return /^--[a-z]+$/.test(value) ? colour(value.slice(2)) : value; }
    if (Array.isArray(value)) { return value.map(coloured); }
    if (value && typeof value === "object") {
      var made = {};
      Object.keys(value).forEach(function (key) { made[key] = key === "values" ? value[key] : coloured(value[key]); });
      return made;
    }
    return value;
  }
  function draw() {
    views.forEach(function (each) { each.finalize(); });
    views = [];
    document.querySelectorAll("[data-chart]").forEach(function (place) {
      var spec = coloured(charts[place.dataset.chart]);
      spec.autosize = { type: "fit-x", contains: "padding" };
      var options = { actions: false, renderer: "svg", ast: true, config: config(place.clientWidth < 440 ? 2 : 6),
        defaultStyle: false, tooltip: { disableDefaultStyle: true } };
      vegaEmbed(place, spec, options).then(function (made) { views.push(made); });
    });
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
