// Shared by the pages of the drill and of scenarios: colours, shapes, zoom, tooltips, keys and print of their charts.
"use strict";
const siterigCharts = (() => {
  const TOOLTIP_ITEMS_MAX = 6;
  const PRINTED_ROWS_MAX = 100;
  const shapes = { info: "circle", good: "triangle", bad: "rectRot" }; // nobody has to tell colours apart

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    return {
      text: named("--text"), soft: named("--soft"), line: named("--line"), card: named("--card"),
      info: named("--accent"), good: named("--good"), bad: named("--bad"),
    };
  }

  // In the order in which they are drawn: errors above all others.
  const layered = (items) => ["info", "good", "bad"].flatMap((each) => items.filter((item) => item.severity === each));

  const wrapped = (text) => text.match(/.{1,60}(\s|$)|.{1,60}/gu) || [];

  function zoom(limits) {
    return {
      zoom: { mode: "x", drag: { enabled: true }, wheel: { enabled: true, modifierKey: "ctrl" }, pinch: { enabled: true } },
      pan: { enabled: true, mode: "x", modifierKey: "shift" },
      limits: { x: limits },
    };
  }

  // Points at one place are in one tooltip: the first of them, and the number of the others.
  function tooltip(callbacks) {
    let found = 0;
    return {
      callbacks: {
        ...callbacks,
        footer: () => (found > TOOLTIP_ITEMS_MAX ? `and ${found - TOOLTIP_ITEMS_MAX} more: zoom in` : ""),
      },
      filter: (_item, index, items) => { found = items.length; return index < TOOLTIP_ITEMS_MAX; },
    };
  }

  function ticks(colour) {
    const most = innerWidth < 640 ? 14 : 30;
    return {
      color: colour.text, autoSkip: false,
      callback(value) {
        const label = this.getLabelForValue(value);
        return label.length > most ? `${label.slice(0, most - 1)}…` : label;
      },
    };
  }

  // Arrow keys step through the points of a chart in the order of time, and show and announce each.
  function keys(canvas, chart, points) {
    let at = -1;
    points.sort((one, other) => one.x - other.x);
    const said = canvas.closest("figure").querySelector("output");
    const pan = (part) => chart.pan({ x: part * chart.chartArea.width });

    function show(next) {
      at = Math.min(Math.max(next, 0), points.length - 1);
      const { datasetIndex, index, x, text } = points[at];
      const scale = chart.scales.x;
      if (x < scale.min || x > scale.max) {
        const half = (scale.max - scale.min) / 2;
        chart.zoomScale("x", { min: x - half, max: x + half });
      }
      const active = [{ datasetIndex, index }];
      chart.setActiveElements(active);
      chart.tooltip.setActiveElements(active, chart.getDatasetMeta(datasetIndex).data[index].getCenterPoint());
      chart.update();
      said.textContent = text;
    }

    const actions = {
      ArrowRight: () => show(at + 1), ArrowLeft: () => show(at - 1), Home: () => show(0), End: () => show(points.length - 1),
      "+": () => chart.zoom({ x: 1.5 }), "-": () => chart.zoom({ x: 1 / 1.5 }), Escape: () => chart.resetZoom(),
      PageUp: () => pan(0.5), PageDown: () => pan(-0.5),
    };
    canvas.onkeydown = (event) => {
      const action = actions[event.key];
      if (!action || event.ctrlKey || event.altKey || event.metaKey || !points.length) return;
      event.preventDefault();
      action();
    };
  }

  // make(colours) draws all charts of the page and returns them; it is called again when the colours change.
  function drawn(make) {
    let charts = [];
    function draw() {
      charts.forEach((chart) => chart.destroy());
      charts = make(colours());
    }
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    document.querySelectorAll("figcaption button").forEach((button, index) => {
      button.addEventListener("click", () => charts[index].resetZoom());
    });
    let opened = [];
    addEventListener("beforeprint", () => {
      document.documentElement.classList.add("printing");
      opened = [...document.querySelectorAll("details:not([open])")].filter(
        (each) => each.querySelectorAll("tr").length <= PRINTED_ROWS_MAX,
      );
      opened.forEach((each) => { each.open = true; });
      draw();
    });
    addEventListener("afterprint", () => {
      document.documentElement.classList.remove("printing");
      opened.forEach((each) => { each.open = false; });
      draw();
    });
  }

  return { shapes, layered, wrapped, zoom, tooltip, ticks, keys, drawn };
})();
