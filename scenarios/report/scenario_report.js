// The timelines of scenarios: operations, events and injections, a row for each kind and for each fault rule.  The data is in the page, as JSON.
"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("chart-data").textContent);
  const { shapes, layered, wrapped, zoom, tooltip, ticks, keys, drawn } = siterigCharts;

  function title(moment) {
    const end = moment.end_s === null ? "" : ` to ${moment.end_s.toFixed(2)} s`;
    return `${moment.lane}, ${moment.at_s.toFixed(2)} s${end}`;
  }

  function timeline(run, colour) {
    const lasting = run.moments.filter((moment) => moment.end_s !== null);
    const instant = layered(run.moments.filter((moment) => moment.end_s === null));
    const points = [instant, lasting].flatMap((moments, datasetIndex) => moments.map((moment, index) => ({
      datasetIndex, index, x: moment.at_s, text: `${title(moment)}: ${moment.text}`,
    })));
    const chart = {
      data: {
        labels: run.rows,
        datasets: [
          {
            type: "scatter", data: instant.map((moment) => ({ x: moment.at_s, y: moment.row, moment })),
            pointRadius: 4.5, pointHoverRadius: 8, pointBackgroundColor: instant.map((moment) => colour[moment.severity]),
            pointStyle: instant.map((moment) => shapes[moment.severity]), pointBorderWidth: 0, clip: 8,
          },
          {
            type: "bar", data: lasting.map((moment) => ({ x: [moment.at_s, moment.end_s], y: moment.row, moment })),
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
            type: "category", labels: run.rows, offset: true, grid: { display: false }, ticks: ticks(colour),
          },
        },
        plugins: {
          legend: { display: false },
          tooltip: tooltip({
            title: (items) => title(items[0].raw.moment),
            label: (item) => wrapped(item.raw.moment.text),
          }),
          zoom: zoom({ min: run.begin_s, max: run.end_s, minRange: 0.1 }),
        },
      },
    };
    return { chart, points };
  }

  drawn((colour) => [...document.querySelectorAll("canvas[data-run]")].map((canvas) => {
    const run = runs[Number(canvas.dataset.run)];
    canvas.parentElement.style.height = `${4.5 + 2 * Math.max(run.rows.length, 1)}rem`;
    const { chart: made, points } = timeline(run, colour);
    const chart = new Chart(canvas, made);
    keys(canvas, chart, points);
    return chart;
  }));
})();
