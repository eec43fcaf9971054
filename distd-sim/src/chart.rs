//! The curves: copies that left the origin, and the slowest node's time, over the number of nodes.

use std::fmt::Write;

use crate::swarm::Row;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
/// A colour for each number of layers.
const COLOURS: [&str; 3] = ["#c0392b", "#2471a3", "#1e8449"];

/// One panel.
struct Panel<'a> {
    title: &'a str,
    top: f64,
    value: fn(&Row) -> f64,
}

/// The drawing as SVG.
pub(crate) fn draw(rows: &[Row]) -> String {
    let panels = [
        Panel {
            title: "payload that left the origin, in copies",
            top: TOP,
            value: |row| row.copies,
        },
        Panel {
            title: "slowest node, in times that the origin's line takes for one copy",
            top: TOP + HEIGHT + 80.0,
            value: |row| row.slowest,
        },
    ];
    let (width, height) = (WIDTH + LEFT + 120.0, 2.0 * (HEIGHT + 80.0) + TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for panel in &panels {
        draw_panel(&mut svg, panel, rows);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel<'_>, rows: &[Row]) {
    let nodes = |row: &Row| (row.shape.nodes.max(1) as f64).log10();
    let (least, most) = rows
        .iter()
        .map(nodes)
        .fold((f64::MAX, 0.0f64), |(least, most), x| (least.min(x), most.max(x)));
    let highest = rows.iter().map(panel.value).fold(1.0f64, f64::max) * 1.1;
    let x = |row: &Row| LEFT + (nodes(row) - least) / (most - least).max(0.1) * WIDTH;
    let y = |value: f64| panel.top + HEIGHT * (1.0 - value / highest);
    let (bottom, right) = (panel.top + HEIGHT, LEFT + WIDTH);
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{}</text>", panel.top - 12.0, panel.title);
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {}V{bottom}H{right}\" fill=\"none\" stroke=\"#333\"/>",
        panel.top
    );
    for tick in 0..=4 {
        let value = highest / 4.0 * f64::from(tick);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.2}</text>",
            LEFT - 8.0,
            y(value) + 4.0
        );
    }
    for (layers, colour) in (1..).zip(COLOURS) {
        let mut line: Vec<&Row> = rows.iter().filter(|row| row.shape.layers == layers).collect();
        line.sort_by_key(|row| row.shape.nodes);
        let points: Vec<String> =
            line.iter().map(|row| format!("{:.1},{:.1}", x(row), y((panel.value)(row)))).collect();
        let Some(last) = line.last() else { continue };
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        for row in &line {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333\">{}</text>",
                x(row),
                y((panel.value)(row)),
                x(row),
                bottom + 18.0,
                row.shape.nodes
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{layers} layer{}</text>",
            x(last) + 8.0,
            y((panel.value)(last)) + 4.0,
            if layers == 1 { "" } else { "s" }
        );
    }
}
