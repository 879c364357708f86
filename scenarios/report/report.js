// The two charts of the report: the steps over time, and the RPO over time.  The data is in the page, as JSON.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const { shapes, layered, wrapped, zoom, tooltip, ticks, keys, drawn } = siterigCharts;
  const events = layered(data.events);
  const bars = ["#4f8fe0", "#7a6fe0", "#3aa6a6", "#b07fd0", "#e0526a", "#d99a3c", "#2aa36b"];

  function options(colour, yAxis, callbacks) {
    return {
      responsive: true, maintainAspectRatio: false, animation: false, color: colour.text,
      interaction: { mode: "nearest", axis: "xy", intersect: false },
      scales: {
        x: {
          type: "linear", min: 0, max: data.end_s, grid: { color: colour.line }, ticks: { color: colour.soft, maxRotation: 0 },
          title: { display: true, text: "seconds since the drill began", color: colour.soft },
        },
        y: yAxis,
      },
      plugins: {
        legend: { display: false },
        tooltip: tooltip(callbacks),
        zoom: zoom({ min: 0, max: data.end_s, minRange: 1 }),
      },
    };
  }

  function timeline(colour) {
    const steps = data.steps.map((step) => step.name);
    const box = document.getElementById("timeline").parentElement;
    box.style.height = `${4.5 + 2 * Math.max(steps.length, 1)}rem`;
    return {
      data: {
        labels: steps,
        datasets: [
          {
            type: "scatter", data: events.map((event) => ({ x: event.at_s, y: event.step, event })),
            pointRadius: 4.5, pointHoverRadius: 8, pointBackgroundColor: events.map((event) => colour[event.severity]),
            pointStyle: events.map((event) => shapes[event.severity]), pointBorderWidth: 0, clip: 8,
          },
          {
            type: "bar", data: data.steps.map((step) => [step.begin_s, step.end_s]),
            backgroundColor: steps.map((_, row) => `${bars[row % bars.length]}66`), borderSkipped: false, barPercentage: 0.9,
          },
        ],
      },
      options: {
        ...options(
          colour,
          { type: "category", labels: steps, offset: true, grid: { display: false }, ticks: ticks(colour) },
          {
            title: (items) => (items[0].raw.event ? `${items[0].raw.event.step}, ${items[0].raw.x.toFixed(1)} s` : items[0].label),
            label: (item) => item.raw.event
              ? wrapped(item.raw.event.text)
              : `${item.raw[0].toFixed(1)} s to ${item.raw[1].toFixed(1)} s: ${(item.raw[1] - item.raw[0]).toFixed(1)} s`,
          },
        ),
        indexAxis: "y",
      },
    };
  }

  function rpo(colour) {
    const line = (label, points, more) => ({ label, data: points, pointRadius: 0, pointHitRadius: 8, borderWidth: 1.8, ...more });
    const highest = 1.25 * Math.max(data.interval_s, ...data.rpo.map((sample) => sample.rpo_s ?? 0));
    const datasets = [
      line("RPO", data.rpo.map((sample) => ({ x: sample.at_s, y: sample.rpo_s })), { borderColor: colour.info }),
      line("replication interval", [{ x: 0, y: data.interval_s }, { x: data.end_s, y: data.interval_s }],
        { borderColor: colour.good, borderDash: [2, 4] }),
    ];
    if (data.lost_at_s !== null) {
      datasets.push(line("site lost", [{ x: data.lost_at_s, y: 0 }, { x: data.lost_at_s, y: highest }],
        { borderColor: colour.bad, borderDash: [6, 4] }));
    }
    const chart = {
      type: "line",
      data: { datasets },
      options: options(
        colour,
        {
          min: 0, max: highest, grid: { color: colour.line }, ticks: { color: colour.soft },
          title: { display: true, text: "RPO (s)", color: colour.soft },
        },
        {
          title: (items) => `${items[0].parsed.x.toFixed(1)} s`,
          label: (item) => (item.dataset.label === "site lost" ? "site lost" : `${item.dataset.label} ${item.parsed.y.toFixed(1)} s`),
        },
      ),
    };
    chart.options.plugins.legend = { display: true, position: "bottom", labels: { color: colour.text, boxHeight: 1 } };
    return chart;
  }

  drawn((colour) => {
    const canvases = ["timeline", "rpo"].map((id) => document.getElementById(id));
    const charts = [timeline(colour), rpo(colour)].map((chart, index) => new Chart(canvases[index], chart));
    keys(canvases[0], charts[0], events.map((event, index) => ({
      datasetIndex: 0, index, x: event.at_s, text: `${event.step}, ${event.at_s.toFixed(1)} s: ${event.text}`,
    })));
    keys(canvases[1], charts[1], data.rpo.flatMap((sample, index) => (sample.rpo_s === null ? [] : [{
      datasetIndex: 0, index, x: sample.at_s, text: `${sample.at_s.toFixed(1)} s: RPO ${sample.rpo_s.toFixed(1)} s`,
    }])));
    return charts;
  });
})();
