//! `calve schema`: the JSON Schema of the pipeline file, for editors.

use calve_engine::{Error, Result};
use clap::Args;
use serde_json::Value;

use crate::{config::PipelineFile, out};

/// Prints the JSON Schema of the pipeline file.
#[derive(Args)]
pub(crate) struct SchemaArgs {}

/// Runs the command.
///
/// # Errors
/// `Internal` only.
#[allow(
    clippy::unused_async,
    reason = "every command is called in the same way"
)]
pub(crate) async fn run(_: SchemaArgs) -> Result<()> {
    let text = serde_json::to_string_pretty(&json_schema());
    out::line(text.map_err(|error| Error::internal("the schema is no JSON").because(error))?);
    Ok(())
}

fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(PipelineFile).to_value();
    schema["title"] = Value::from("calve pipeline file");
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_described_and_closed() {
        let schema = json_schema();
        assert_eq!(schema["additionalProperties"], Value::from(false));
        let required: Vec<&str> = ["name", "sink", "source"].into();
        let mut found: Vec<&str> = schema["required"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        found.sort_unstable();
        assert_eq!(found, required);
        let sections = schema["properties"].as_object().expect("sections");
        assert_eq!(sections.len(), 17);
        for (name, section) in sections {
            assert!(
                section["description"].is_string(),
                "{name} has no description"
            );
        }
    }
}
