//! The monitors' figures as people and programs read them.

use arrow::util::pretty::pretty_format_batches;
use calve_sql::Monitors;

/// Name and table of each monitor, in the order of the pipeline file.
pub(crate) fn text(monitors: &Monitors) -> Vec<(String, String)> {
    monitors
        .result()
        .into_iter()
        .map(|figure| {
            let table = pretty_format_batches(&[figure.rows])
                .map_or_else(|e| format!("cannot be shown: {e}"), |t| t.to_string());
            let note = figure.note.map_or(String::new(), |n| format!("\n{n}"));
            (figure.name, format!("{table}{note}"))
        })
        .collect()
}

/// The rows of each monitor, by name.
pub(crate) fn json(monitors: &Monitors) -> serde_json::Value {
    let mut all = serde_json::Map::new();
    for figure in monitors.result() {
        let mut writer = arrow_json::ArrayWriter::new(Vec::new());
        let written = writer.write(&figure.rows).and_then(|()| writer.finish());
        let rows = match written {
            Ok(()) => serde_json::from_slice(&writer.into_inner()).unwrap_or_default(),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        all.insert(figure.name, rows);
    }
    serde_json::Value::Object(all)
}
