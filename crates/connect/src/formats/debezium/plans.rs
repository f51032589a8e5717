//! Ways of reading rows: one for each schema that changes carry, remembered by the schema's bytes.

use arrow::datatypes::Field;
use calve_engine::Result;

use super::{
    super::json::{
        object::Object,
        text::Failure,
        wire::{How, Wire},
    },
    DebeziumDecoder,
    connect::Connect,
    unwrapped,
};

/// So many schemas, and ways of reading them, are remembered.
const REMEMBERED: usize = 64;

/// How the values of rows are written, and the columns that read them.
pub(super) struct Plan {
    pub(super) wire: Wire,
    pub(super) rows: Object,
}

impl DebeziumDecoder {
    /// How rows of a schema are read; without one, by the settings.
    pub(super) fn plan_of(&self, schema: Option<&Connect>) -> Result<Plan> {
        let mut inside: Vec<Wire> = self
            .columns
            .iter()
            .map(|field| {
                let of = field.data_type();
                match schema.and_then(|schema| schema.child(field.name())) {
                    Some(connect) => connect.wire(of, &self.config),
                    None => self.config.wire(of),
                }
            })
            .collect();
        let mut fields: Vec<Field> = self.columns.iter().map(|f| f.as_ref().clone()).collect();
        if self.config.unwrapped {
            let (extras, wires) = unwrapped::extras(&self.metadata);
            fields.extend(extras);
            inside.extend(wires);
        }
        let wire = Wire {
            how: How::Plain,
            inside,
        };
        let mut rows = Object::new(&fields.into(), &wire)?;
        if let Some(watch) = &self.watch {
            rows.when_unknown(&watch.unknown());
        }
        Ok(Plan { wire, rows })
    }

    /// The plan of a schema.
    #[inline]
    pub(super) fn plan_for(&mut self, schema: &[u8]) -> Result<usize, Failure> {
        if schema.is_empty() {
            return Ok(0);
        }
        if let Some((known, plan)) = self.schemas.get(self.last_schema)
            && **known == *schema
        {
            return Ok(*plan);
        }
        self.look_up(schema)
    }

    #[cold]
    fn look_up(&mut self, schema: &[u8]) -> Result<usize, Failure> {
        if let Some(n) = self
            .schemas
            .iter()
            .position(|(known, _)| **known == *schema)
        {
            self.last_schema = n;
            return Ok(self.schemas[n].1);
        }
        if self.schemas.len() == REMEMBERED {
            self.choose(0)?;
            self.schemas.clear();
            self.plans.truncate(1);
        }
        // What is no schema of rows says nothing, as if it were not there.
        let connect = Connect::row(schema, self.config.unwrapped);
        let plan = match &connect {
            Some(connect) => {
                self.compare(connect);
                let plan = self.plan_of(Some(connect));
                let plan = plan.map_err(|_| Failure::new("its schema cannot be read"))?;
                let known = self.plans.iter().position(|known| known.wire == plan.wire);
                known.unwrap_or_else(|| {
                    self.plans.push(plan);
                    self.plans.len() - 1
                })
            }
            None => 0,
        };
        self.last_schema = self.schemas.len();
        self.schemas.push((schema.into(), plan));
        Ok(plan)
    }

    /// Notes that a schema has columns which the rows lack, or wider ones; says which are dropped, once for
    /// each.
    fn compare(&mut self, schema: &Connect) {
        for seen in schema.columns() {
            let name = seen.name();
            if let Some((_, column)) = self.columns.find(name) {
                let watch = self.watch.as_ref();
                if let Some(watch) =
                    watch.filter(|watch| watch.grows(column.data_type(), seen.data_type()))
                {
                    watch.note();
                }
                continue;
            }
            if self.config.unwrapped && unwrapped::is_extra(&self.config, name) {
                continue;
            }
            if let Some(watch) = self.watch.as_ref().filter(|watch| watch.adds()) {
                watch.note();
            } else if self.dropped.insert(name.clone()) {
                tracing::warn!(
                    "changes have a column that the pipeline lacks; it is dropped: column={name}"
                );
            }
        }
    }
}
