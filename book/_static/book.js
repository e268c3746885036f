// Charts come alive: the static picture gives way to the live one, as wide as the screen allows. One idea, one file.
(function () {
  "use strict";
  const WIDEST = 640;
  const NARROWEST = 140;
  const root = document.documentElement.dataset.content_root || "./";
  let vega = null;

  function load() {
    vega = vega || new Promise(function (resolve, reject) {
      const script = document.createElement("script");
      script.src = root + "vendor/vega/vega.js";
      script.onload = function () { resolve(window.vegaEmbed); };
      script.onerror = reject;
      document.head.append(script);
    });
    return vega;
  }

  function sized(spec, svg, view, least) {
    const unit = spec.spec || spec; // a chart by workload holds one spec for all
    const frame = parseFloat(svg.getAttribute("width")) - unit.width; // axes and padding
    unit.width = Math.max(NARROWEST, Math.max(least, Math.min(WIDEST, view.clientWidth)) - frame);
    return spec;
  }

  async function enliven(chart) {
    const view = chart.querySelector(".chart-view");
    const still = view.querySelector("svg");
    const source = chart.querySelector("script.chart-spec");
    const least = parseFloat(chart.dataset.least || 0);
    const spec = sized(JSON.parse(source.textContent), still, view, least);
    const embed = await load();
    const live = document.createElement("div");
    live.className = "chart-live";
    live.hidden = true;
    view.append(live);
    const options = { actions: false, renderer: "svg", loader: { baseURL: "" }, tooltip: { theme: "custom" } };
    let result = await embed(live, spec, options);
    const unit = spec.spec || spec;
    live.hidden = false;
    still.style.display = "none";
    // the browser's type is not exactly vl-convert's: what still hangs over is taken off once
    const over = live.querySelector("svg").getBoundingClientRect().width - Math.max(least, view.clientWidth);
    if (over > 1 && unit.width > NARROWEST) {
      unit.width = Math.max(NARROWEST, unit.width - Math.ceil(over));
      result = await embed(live, spec, options);
    }
    chart.classList.add("is-live");
    return result;
  }

  document.addEventListener("DOMContentLoaded", function () {
    const seen = new IntersectionObserver(function (entries) {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          seen.unobserve(entry.target);
          enliven(entry.target).catch(function () {}); // the picture stays
        }
      }
    }, { rootMargin: "300px" });
    document.querySelectorAll("figure.chart").forEach(function (chart) { seen.observe(chart); });
  });
})();
