// The timelines of scenarios: operations, events and injections, a row for each kind.  The data is in the page, as JSON.
"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("chart-data").textContent);
  const charts = [];

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    return {
      text: named("--text"), soft: named("--soft"), line: named("--line"),
      info: named("--accent"), good: named("--good"), bad: named("--bad"),
    };
  }

  const wrapped = (text) => text.match(/.{1,60}(\s|$)|.{1,60}/gu) || [];

  function timeline(run, colour) {
    const lasting = run.moments.filter((moment) => moment.end_s !== null);
    const instant = run.moments.filter((moment) => moment.end_s === null);
    const limits = { min: run.begin_s, max: run.end_s, minRange: 0.1 };
    const zoom = { mode: "x", drag: { enabled: true }, wheel: { enabled: true, modifierKey: "ctrl" }, pinch: { enabled: true } };
    return {
      data: {
        labels: run.lanes,
        datasets: [
          {
            type: "scatter", data: instant.map((moment) => ({ x: moment.at_s, y: moment.lane, moment })),
            pointRadius: 4, pointHoverRadius: 7, pointBackgroundColor: instant.map((moment) => colour[moment.severity]),
            pointBorderWidth: 0, clip: 8,
          },
          {
            type: "bar", data: lasting.map((moment) => ({ x: [moment.at_s, moment.end_s], y: moment.lane, moment })),
            backgroundColor: lasting.map((moment) => `${colour[moment.severity]}66`), barPercentage: 0.9,
            borderColor: lasting.map((moment) => colour[moment.severity]), borderWidth: 1, borderSkipped: false,
            grouped: false, minBarLength: 2,
          },
        ],
      },
      options: {
        responsive: true, maintainAspectRatio: false, animation: false, color: colour.text, indexAxis: "y",
        interaction: { mode: "nearest", axis: "xy", intersect: false },
        scales: {
          x: {
            type: "linear", min: run.begin_s, max: run.end_s, grid: { color: colour.line },
            ticks: { color: colour.soft, maxRotation: 0 },
            title: { display: true, text: "seconds since the timeline began", color: colour.soft },
          },
          y: {
            type: "category", labels: run.lanes, offset: true, grid: { display: false },
            ticks: { color: colour.text, autoSkip: false },
          },
        },
        plugins: {
          legend: { display: false },
          tooltip: {
            callbacks: {
              title: (items) => {
                const { moment } = items[0].raw;
                const end = moment.end_s === null ? "" : ` to ${moment.end_s.toFixed(2)} s`;
                return `${moment.lane}, ${moment.at_s.toFixed(2)} s${end}`;
              },
              label: (item) => wrapped(item.raw.moment.text),
            },
          },
          zoom: { zoom, limits: { x: limits } },
        },
      },
    };
  }

  function draw() {
    charts.splice(0).forEach((chart) => chart.destroy());
    const colour = colours();
    document.querySelectorAll("canvas[data-run]").forEach((canvas) => {
      const run = runs[Number(canvas.dataset.run)];
      canvas.parentElement.style.height = `${4.5 + 2 * Math.max(run.lanes.length, 1)}rem`;
      charts.push(new Chart(canvas, timeline(run, colour)));
    });
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.querySelectorAll("figcaption button").forEach((button, index) => {
    button.addEventListener("click", () => charts[index].resetZoom());
  });
})();
