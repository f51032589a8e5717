//! Draws what the controller of sizes does in each world of its tests:
//! `cargo run --release -p calve-model --example flow_plots > docs/flow-control.svg`

#![allow(clippy::print_stdout, reason = "the picture is what it prints")]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/common/flow.rs"]
mod world;

use std::fmt::Write as _;

use world::{Point, Policy, WORLDS, World, run};

const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 150.0;
const GAP: f64 = 58.0;

fn main() {
    let rows = WORLDS.len().div_ceil(2) as f64;
    let (width, height) = (2.0 * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{GAP}\" y=\"20\"><tspan fill=\"#1f6fb4\">commit interval</tspan>, \
         <tspan fill=\"#c0392b\">age of the oldest row when it became visible</tspan>, \
         freshness (dashed), seconds; <tspan fill=\"#888\">rows of a batch</tspan> (right)</text>\n"
    );
    for (number, world) in WORLDS.iter().enumerate() {
        let left = GAP + (number % 2) as f64 * (WIDTH + GAP);
        let top = GAP + (number / 2) as f64 * (HEIGHT + GAP);
        panel(&mut svg, world, left, top);
    }
    svg.push_str("</svg>\n");
    print!("{svg}");
}

fn panel(svg: &mut String, world: &World, left: f64, top: f64) {
    let trace = run(world, Policy::controlled(world)).trace;
    let most = trace.iter().map(|p| p.age).fold(world.freshness, f64::max) * 1.1;
    let x = |at: f64| left + at / world.seconds * WIDTH;
    let y = |value: f64| top + HEIGHT * (1.0 - value / most);
    // Batches on a logarithmic scale, 250 to 512,000.
    let batch = |rows: f64| top + HEIGHT * (1.0 - (rows / 250.0).log2() / 11.0);
    let _ = write!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\n\
         <rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#ccc\"/>\n\
         <line x1=\"{left}\" x2=\"{}\" y1=\"{}\" y2=\"{}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/>\n",
        top - 6.0,
        world.name,
        left + WIDTH,
        y(world.freshness),
        y(world.freshness),
    );
    let (end, bottom) = (left + WIDTH + 4.0, top + HEIGHT);
    for (at, label) in [(top + 8.0, "512k"), (bottom, "250")] {
        let _ = writeln!(
            svg,
            "<text x=\"{end}\" y=\"{at}\" fill=\"#888\">{label}</text>"
        );
    }
    for (value, label) in [
        (0.0, "0".to_owned()),
        (world.freshness, world.freshness.to_string()),
    ] {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>",
            left - 4.0,
            y(value) + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} s</text>",
        left + WIDTH,
        bottom + 13.0,
        world.seconds
    );
    let mut line = |colour: &str, of: &dyn Fn(&Point) -> f64| {
        let points: Vec<String> = trace
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.at), of(point)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>",
            points.join(" ")
        );
    };
    line("#bbb", &|point| batch(point.sizes.batch_rows as f64));
    line("#1f6fb4", &|point| y(point.sizes.commit_every as f64 / 1e6));
    line("#c0392b", &|point| y(point.age));
}
