//! Puts the rows together from what was read: columns of the table, operations, metadata.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray},
    datatypes::{Int32Type, SchemaRef},
    error::ArrowError,
};

use super::config::{DebeziumConfig, OP};

/// The letters of operations that make rows, as the dictionary has them.
const OPS: [&str; 5] = ["c", "u", "d", "r", "t"];

/// What a column of the rows is.
enum Role {
    /// The next column of the table.
    Table,
    Operation,
    /// The path in this place of the settings.
    Metadata(usize),
}

/// Where the columns of the rows come from.
pub(super) struct Assembly {
    schema: SchemaRef,
    roles: Vec<Role>,
    /// The letters of operations, shared by all batches.
    letters: ArrayRef,
}

impl Assembly {
    pub(super) fn new(config: &DebeziumConfig, schema: SchemaRef) -> Self {
        let role = |name: &str| {
            let path = config.metadata.iter().position(|path| path == name);
            match path {
                Some(place) => Role::Metadata(place),
                None if name == OP => Role::Operation,
                None => Role::Table,
            }
        };
        let fields = schema.fields().iter();
        Self {
            roles: fields.map(|field| role(field.name())).collect(),
            letters: Arc::new(StringArray::from(OPS.to_vec())),
            schema,
        }
    }

    /// Rows of the table's columns, in their order; of the letters of operations; and of metadata in
    /// the order of the settings.
    pub(super) fn rows(
        &self,
        table: Vec<ArrayRef>,
        ops: &[u8],
        metadata: &[ArrayRef],
    ) -> Result<RecordBatch, ArrowError> {
        let mut table = table.into_iter();
        let column = |role: &Role| {
            Ok(match role {
                Role::Table => table.next(),
                Role::Metadata(place) => metadata.get(*place).map(Arc::clone),
                Role::Operation => Some(self.operations(ops)?),
            })
        };
        let columns: Vec<Option<ArrayRef>> = self
            .roles
            .iter()
            .map(column)
            .collect::<Result<_, ArrowError>>()?;
        let columns: Option<Vec<ArrayRef>> = columns.into_iter().collect();
        let missing = || ArrowError::SchemaError("a column was not read".into());
        let options = RecordBatchOptions::new().with_row_count(Some(ops.len()));
        RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            columns.ok_or_else(missing)?,
            &options,
        )
    }

    fn operations(&self, ops: &[u8]) -> Result<ArrayRef, ArrowError> {
        let letter = |op: &u8| {
            let place = OPS.iter().position(|letter| letter.as_bytes() == [*op]);
            place.map(|place| place as i32)
        };
        let letters: Int32Array = ops.iter().map(letter).collect();
        let ops = DictionaryArray::<Int32Type>::try_new(letters, Arc::clone(&self.letters))?;
        Ok(Arc::new(ops))
    }
}
