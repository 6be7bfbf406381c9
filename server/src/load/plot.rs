//! A report as an SVG picture: a panel each for the rate, the time to the first token and the time between tokens, over
//! the loads.

use std::fmt::Write;

use super::drive::Arrivals;
use super::report::{Level, Percentiles, Report};

const PANEL_WIDTH: f64 = 340.0;
const HEIGHT: f64 = 300.0;
/// Around a panel's axes: left, right, top, bottom.
const MARGIN: [f64; 4] = [60.0, 20.0, 60.0, 50.0];
/// Told apart by people who see no red and green, too, and in grey.
const COLOURS: [&str; 3] = ["#0072b2", "#e69f00", "#7a1f5c"];
/// Grid lines above zero, at least.
const LEAST_TICKS: f64 = 4.0;

/// One line of a panel: a name and a value for each load that has one.
struct Series {
    name: &'static str,
    values: Vec<Option<f64>>,
}

/// The picture.
pub fn svg(report: &Report) -> String {
    let ranks = |times: fn(&Level) -> Option<Percentiles>| {
        let series = |name, rank: fn(Percentiles) -> f64| Series {
            name,
            values: report.levels.iter().map(|level| times(level).map(rank)).collect(),
        };
        vec![series("p50", |t| t.p50), series("p90", |t| t.p90), series("p99", |t| t.p99)]
    };
    let rate = report.levels.iter().map(|level| Some(level.generated_tokens_per_s)).collect();
    let panels = [
        ("generated tokens/s", vec![Series { name: "", values: rate }]),
        ("first token, ms", ranks(|level| level.first_token_ms)),
        ("between tokens, ms", ranks(|level| level.inter_token_ms)),
    ];
    let width = PANEL_WIDTH * panels.len() as f64;
    let model = report.model.as_deref().unwrap_or("its model");
    let title = escape(&format!(
        "{model} on {}: prompts of {} tokens, answers of {}",
        report.server, report.shape.prompt, report.shape.output
    ));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"20\" font-size=\"14\">{title}</text>\n",
        MARGIN[0]
    );
    for (index, (name, series)) in panels.iter().enumerate() {
        panel(&mut out, index as f64 * PANEL_WIDTH, name, series, &report.levels);
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, left: f64, name: &str, series: &[Series], levels: &[Level]) {
    let [margin_left, margin_right, top, margin_bottom] = MARGIN;
    let (x0, x1, y0) = (left + margin_left, left + PANEL_WIDTH - margin_right, HEIGHT - margin_bottom);
    let most = series.iter().flat_map(|series| &series.values).filter_map(|value| *value).fold(0.0, f64::max);
    let step = tick(most);
    let num_ticks = (most / step).ceil().max(1.0);
    let x = |index: usize| x0 + (x1 - x0) * (index as f64 + 0.5) / levels.len().max(1) as f64;
    let y = |value: f64| y0 - (y0 - top) * value / (num_ticks * step);
    let _ = writeln!(out, "<text x=\"{x0}\" y=\"{}\">{name}</text>", top - 12.0);
    for number in 0..=num_ticks as usize {
        let value = number as f64 * step;
        let at = y(value);
        let _ = writeln!(
            out,
            "<path d=\"M{x0:.1} {at:.1}H{x1:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            x0 - 6.0,
            at + 4.0
        );
    }
    for (index, level) in levels.iter().enumerate() {
        let load = match level.arrivals {
            Arrivals::Concurrency(clients) => clients.to_string(),
            Arrivals::Rate(rate) => rate.to_string(),
        };
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{load}</text>", x(index), y0 + 18.0);
    }
    let axis = match levels.first().map(|level| level.arrivals) {
        Some(Arrivals::Rate(_)) => "requests/s",
        _ => "clients",
    };
    let middle = (x0 + x1) / 2.0;
    let _ = writeln!(out, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{axis}</text>", y0 + 36.0);
    for (index, (series, colour)) in series.iter().zip(COLOURS).enumerate() {
        let points = || series.values.iter().enumerate().filter_map(|(load, value)| Some((x(load), y((*value)?))));
        let line: String = points().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.trim_end()
        );
        for (x, y) in points() {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
        let at = x1 - 35.0 * (COLOURS.len() - index) as f64 + 10.0;
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>", top - 12.0, series.name);
    }
}

/// A distance of 1, 2 or 5 times a power of ten with at least [`LEAST_TICKS`] of them up to `most`.
fn tick(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let rough = most / LEAST_TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    [5.0, 2.0].into_iter().map(|factor| factor * power).find(|&step| step <= rough).unwrap_or(power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::{Api, Timeline};
    use super::super::drive::{Outcome, Shape, Wanted};
    use super::super::workload::Length;
    use super::*;

    #[test]
    fn ticks_are_round() {
        for (most, step) in [(0.0, 1.0), (4.0, 1.0), (9.0, 2.0), (39.0, 5.0), (1500.0, 200.0), (0.5, 0.1)] {
            assert!((tick(most) - step).abs() < 1e-9, "{most}: {}", tick(most));
        }
    }

    #[test]
    fn every_load_has_its_points_inside_the_picture() {
        let ms = Duration::from_millis;
        let shape = Shape {
            prompt: Length::Fixed(1),
            output: Length::Fixed(4),
            shared_prefix: 0,
            temperature: 0.0,
            seed: 0,
            limit: ms(1),
        };
        let level = |clients: usize| {
            let timeline = Timeline { first: ms(20), gaps: vec![ms(5); 3], total: ms(35), usage: None };
            let answered = vec![(timeline, Wanted { prompt: 1, output: 4 }); clients];
            let outcome = Outcome { answered, wall: ms(100), ..Outcome::default() };
            Level::new(Arrivals::Concurrency(clients), &outcome)
        };
        // A load without answers has a rate of 0 and no times.
        let levels = vec![level(1), level(16), level(0)];
        let (server, model) = ("<a&b>".to_owned(), Some("m".to_owned()));
        let picture = svg(&Report { server, model, api: Api::Chat, shape, extent: None, levels });
        assert!(picture.contains("&lt;a&amp;b&gt;"));
        let attribute = |circle: &str, name: &str| -> f64 {
            let rest = circle.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.parse().unwrap()
        };
        let circles: Vec<&str> = picture.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 3 + 2 * 6);
        for circle in circles {
            let (x, y) = (attribute(circle, "cx"), attribute(circle, "cy"));
            assert!((0.0..=3.0 * PANEL_WIDTH).contains(&x) && (MARGIN[2]..=HEIGHT).contains(&y), "{circle}");
        }
    }
}
