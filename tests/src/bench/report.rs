//! Results as a table on the terminal, as a JSON file and as a chart.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use plotters::{
    coord::Shift,
    prelude::{DrawingArea, IntoDrawingArea, Rectangle, SVGBackend, Text},
    style::{Color, IntoFont, RGBColor, TextStyle, WHITE},
};
use serde_json::{Value, json};

/// A number in a chart.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands together is of one group, in one colour.
    pub group: String,
    /// What it is about.
    pub label: String,
    /// How much.
    pub value: f64,
}

/// What one part of the benchmark found.
pub struct Report {
    /// The files' name.
    pub name: &'static str,
    /// What it says above the chart.
    pub title: String,
    /// Of the chart's numbers.
    pub unit: &'static str,
    /// The chart.
    pub bars: Vec<Bar>,
    /// Whether each group has a scale of its own.
    pub scaled_by_group: bool,
    /// Headings of the table's columns.
    pub headings: Vec<&'static str>,
    /// The table.
    pub rows: Vec<Vec<String>>,
    /// Everything, for programs.
    pub results: Value,
}

const WIDTH: u32 = 900;
const ROW: u32 = 18;
const TOP: u32 = 44;
/// Where bars begin, and how much room their numbers have behind them.
const LABELS: u32 = 330;
const NUMBERS: u32 = 90;
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd9, 0x6b, 0x0c),
    RGBColor(0x2c, 0x8a, 0x3c),
    RGBColor(0x8c, 0x5a, 0xb4),
    RGBColor(0x9c, 0x4a, 0x3c),
    RGBColor(0x5f, 0x6f, 0x7f),
];

/// Makes a directory, unless it is there, in which reports can be written.
///
/// # Errors
///
/// It isn't one, or nothing can be written there.
pub fn prepare(directory: &Path) -> Result<()> {
    let refused = || format!("{}: reports can't be written there", directory.display());
    fs::create_dir_all(directory).with_context(refused)?;
    tempfile::tempfile_in(directory).map(drop).with_context(refused)
}

impl Report {
    /// Prints the table, and writes JSON and chart into a directory, if there is one.
    ///
    /// # Errors
    ///
    /// They can't be written.
    pub fn publish(&self, directory: Option<&Path>) -> Result<()> {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(&self.headings).add_rows(&self.rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{}\n{table}\n", self.title);
        let Some(directory) = directory else { return Ok(()) };
        let results = json!({ "machine": machine()?, "results": self.results });
        let file = directory.join(self.name).with_extension("json");
        fs::write(&file, serde_json::to_string_pretty(&results)? + "\n")?;
        let chart = directory.join(self.name).with_extension("svg");
        self.draw(&chart).map_err(|error| anyhow!("{}: {error}", chart.display()))?;
        println!("Written: {} and {}\n", file.display(), chart.display());
        Ok(())
    }

    fn draw(&self, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let groups: Vec<&[Bar]> =
            self.bars.chunk_by(|one, other| one.group == other.group).collect();
        // Each group has a line before it.
        let height = TOP + (self.bars.len() + groups.len()) as u32 * ROW + ROW / 2;
        let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let heading = TextStyle::from(("sans-serif", 16).into_font());
        area.draw(&Text::new(format!("{}, {}", self.title, self.unit), (10, 12), heading))?;
        let longest =
            |bars: &[Bar]| bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let longest_of_all = longest(&self.bars);
        let mut row = 0;
        for (number, group) in groups.iter().enumerate() {
            let scale = if self.scaled_by_group { longest(group) } else { longest_of_all };
            let colour = COLOURS[number % COLOURS.len()];
            let name = TextStyle::from(("sans-serif", 13).into_font()).color(&colour);
            area.draw(&Text::new(group[0].group.clone(), (10, place(row)), name))?;
            row += 1;
            for bar in *group {
                draw_bar(&area, bar, row, bar.value / scale, colour)?;
                row += 1;
            }
        }
        Ok(area.present()?)
    }
}

/// Where a row of the chart begins.
const fn place(row: u32) -> i32 {
    (TOP + row * ROW) as i32
}

fn draw_bar(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    bar: &Bar,
    row: u32,
    part: f64,
    colour: RGBColor,
) -> Result<(), Box<dyn std::error::Error>> {
    let text = TextStyle::from(("sans-serif", 12).into_font());
    let top = place(row);
    let end = LABELS as i32 + (f64::from(WIDTH - LABELS - NUMBERS) * part) as i32;
    area.draw(&Text::new(bar.label.clone(), (24, top + 1), text.clone()))?;
    let corners = [(LABELS as i32, top + 1), (end.max(LABELS as i32 + 1), top + ROW as i32 - 3)];
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    area.draw(&Text::new(number(bar.value), (end + 5, top + 1), text))?;
    Ok(())
}

/// The one in the middle, if there are any.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A number with three digits that mean something.
pub(super) fn number(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// Where it was measured.
fn machine() -> Result<Value> {
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let model = processor.lines().find_map(|line| line.strip_prefix("model name"));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(json!({
        "processor": model.map(|model| model.trim_start_matches([' ', '\t', ':'])),
        "processors": std::thread::available_parallelism()?.get(),
        "kernel": release.trim(),
    }))
}
