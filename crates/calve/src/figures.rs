//! The monitors' figures as people and programs read them, cut to what either can take in: a monitor
//! may have 100,000 groups.

use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use calve_sql::Figure;

/// Rows that are shown to people, and given to programs.
const SHOWN_ROWS: usize = 20;
const GIVEN_ROWS: usize = 1_000;
/// Characters of one value that are shown to people.
const SHOWN_CHARS: usize = 40;

/// Name and text of each monitor, in the order of the pipeline file: a table for people, or with
/// `json` an array of rows.
pub(crate) fn text(figures: &[Figure], json: bool) -> Vec<(String, String)> {
    let text = |figure: &Figure| match (json, &figure.note) {
        (true, None) => rows(figure).to_string(),
        (true, Some(note)) => note.clone(),
        (false, None) => table(&figure.rows),
        (false, Some(note)) => format!("{}\n{note}", table(&figure.rows)),
    };
    let named = figures.iter().map(|f| (f.name.clone(), text(f)));
    named.collect()
}

/// The rows of each monitor, by name; the first thousand of each.
pub(crate) fn json(figures: &[Figure]) -> serde_json::Value {
    let named = figures.iter().map(|f| (f.name.clone(), rows(f)));
    serde_json::Value::Object(named.collect())
}

fn rows(figure: &Figure) -> serde_json::Value {
    let rows = figure.rows.slice(0, figure.rows.num_rows().min(GIVEN_ROWS));
    let mut writer = arrow_json::ArrayWriter::new(Vec::new());
    let written = writer.write(&rows).and_then(|()| writer.finish());
    match written {
        Ok(()) => serde_json::from_slice(&writer.into_inner()).unwrap_or_default(),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    }
}

/// Columns of text, two spaces apart; numbers to the right.
fn table(rows: &RecordBatch) -> String {
    let options = FormatOptions::default().with_null("NULL");
    let shown = rows.num_rows().min(SHOWN_ROWS);
    let schema = rows.schema();
    let mut lines = vec![String::new(); shown + 1];
    for (field, column) in schema.fields().iter().zip(rows.columns()) {
        let cells = match ArrayFormatter::try_new(column, &options) {
            Ok(format) => (0..shown)
                .map(|row| cell(&format.value(row).to_string()))
                .collect(),
            Err(_) => vec!["?".to_owned(); shown],
        };
        let cells: Vec<String> = std::iter::once(cell(field.name())).chain(cells).collect();
        let width = cells.iter().map(|c| c.chars().count()).max().unwrap_or(0);
        let right = field.data_type().is_numeric();
        for (line, cell) in lines.iter_mut().zip(&cells) {
            if right {
                line.push_str(&format!("  {cell:>width$}"));
            } else {
                line.push_str(&format!("  {cell:<width$}"));
            }
        }
    }
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    let more = rows.num_rows() - shown;
    if more > 0 {
        lines.push(format!("  … and {} more", crate::human::exact(more as u64)));
    }
    lines.join("\n")
}

/// One line of at most so many characters, without what a terminal would obey.
fn cell(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= SHOWN_CHARS {
        return text.chars().map(plain).collect();
    }
    let cut = text.chars().take(SHOWN_CHARS - 1).map(plain);
    cut.chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{DataType, Field, Schema},
    };

    use super::*;

    fn figure(names: Vec<Option<String>>, note: Option<&str>) -> Figure {
        let schema = Schema::new(vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("n", DataType::Int64, false),
        ]);
        let n = Int64Array::from_iter_values(0..names.len() as i64);
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(StringArray::from(names)), Arc::new(n)];
        Figure {
            name: "groups".to_owned(),
            rows: RecordBatch::try_new(Arc::new(schema), columns).expect("rows"),
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn a_hundred_thousand_groups_do_not_flood() {
        let names = (0..100_000).map(|n| Some(format!("g{n}"))).collect();
        let figures = [figure(names, None)];
        let shown = &text(&figures, false)[0].1;
        assert_eq!(shown.lines().count(), SHOWN_ROWS + 2, "{shown}");
        assert!(shown.ends_with("  … and 99,980 more"), "{shown}");
        let given = json(&figures);
        assert_eq!(given["groups"].as_array().map(Vec::len), Some(GIVEN_ROWS));
        assert!(text(&figures, true)[0].1.starts_with("[{"));
    }

    #[test]
    fn values_are_short_lines_that_no_terminal_obeys() {
        let names = vec![
            Some("\u{1b}[2Jgone\nnext".to_owned()),
            None,
            Some("é".repeat(60)),
        ];
        let shown = &text(&[figure(names, Some("it stopped"))], false)[0].1;
        let long = format!("{}…", "é".repeat(SHOWN_CHARS - 1));
        let pad = |text: &str, n| format!("  {text:<SHOWN_CHARS$}  {n}");
        let wanted = [
            pad("name", 'n'),
            pad("\u{fffd}[2Jgone\u{fffd}next", '0'),
            pad("NULL", '1'),
            format!("  {long}  2"),
            "it stopped".to_owned(),
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn no_row_is_a_header() {
        let figures = [figure(Vec::new(), None)];
        assert_eq!(text(&figures, false)[0].1, "  name  n");
        assert_eq!(json(&figures)["groups"], serde_json::json!([]));
    }
}
