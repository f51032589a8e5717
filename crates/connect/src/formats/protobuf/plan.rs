//! What a message becomes: the columns, what fills them, and the tables by which they are read.
//!
//! Without a mapping each field is a column (`whole`); with one, each column says which fields it is
//! filled from. Fields that exclude each other (those of different cases of a oneof) share a cell when
//! they fill the same column, so that choosing between them costs nothing.

mod mapping;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use calve_engine::{Error, Result};
use prost_reflect::{FieldDescriptor, Kind as Type, MessageDescriptor};

use super::{
    config::{Enums, ProtobufConfig},
    draft::{Drafts, ElementsOf, WellKnown, oneof_of},
    fill::{Fill, View},
    labels::{Case, Labels},
    leaves,
    nested::{Lists, Maps, Place, Structs},
    table::{Scope, Tables},
};
use crate::formats::types;

/// A column of the rows.
pub(super) struct Column {
    name: String,
    required: bool,
    pub(super) fill: Box<dyn Fill>,
}

impl Column {
    /// Appends the values of a block.
    pub(super) fn append(&mut self, view: &mut View<'_>) {
        let before = self.fill.nulls();
        self.fill.append(view);
        if self.required && self.fill.nulls() > before && view.failures.is_empty() {
            view.failed(
                &self.name,
                "the column is required, and the message has no value for it",
            );
        }
    }
}

/// A plan for one message.
pub(super) struct Plan {
    pub(super) schema: SchemaRef,
    pub(super) tables: Tables,
    pub(super) scopes: Vec<Scope>,
    pub(super) columns: Vec<Column>,
}

/// A column's type and what fills it.
type Made = (DataType, Box<dyn Fill>);

impl Plan {
    /// # Errors
    /// `Config` for paths that are not there, types that do not fit, columns of the same name.
    pub(super) fn new(message: &MessageDescriptor, config: &ProtobufConfig) -> Result<Self> {
        let mut maker = Maker {
            drafts: Drafts::new(message.clone()),
            enums: config.enums,
        };
        let mut fields: Vec<Field> = Vec::new();
        let mut columns = Vec::new();
        let mut add = |field: Field, fill| {
            if fields.iter().any(|known| known.name() == field.name()) {
                return Err(Error::config(format!(
                    "two columns have the same name: column={}",
                    field.name()
                ))
                .hint("name the columns yourself: `columns: { at: meta.closed_at, … }`"));
            }
            columns.push(Column {
                name: field.name().clone(),
                required: !field.is_nullable(),
                fill,
            });
            fields.push(field);
            Ok(())
        };
        match &config.columns {
            None => {
                let mut within = vec![message.full_name().to_owned()];
                for (field, fill) in maker.members(0, "", config.flatten, false, &mut within)? {
                    add(field, fill)?;
                }
            }
            Some(mapping) => {
                maker.share(message, mapping)?;
                for (name, column) in &mapping.0 {
                    let made = maker.mapped(message, name, column);
                    let (field, fill) = made.map_err(|e| e.context(format!("column {name}")))?;
                    add(field, fill)?;
                }
            }
        }
        if fields.is_empty() {
            return Err(Error::config(format!(
                "the message has no fields: message={}",
                message.full_name()
            )));
        }
        let (tables, scopes) = maker.drafts.finish()?;
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            tables,
            scopes,
            columns,
        })
    }
}

struct Maker {
    drafts: Drafts,
    enums: Enums,
}

impl Maker {
    /// Columns of all fields of a message, and of the cases of its oneofs.
    fn members(
        &mut self,
        draft: usize,
        prefix: &str,
        flatten: bool,
        nested: bool,
        within: &mut Vec<String>,
    ) -> Result<Vec<(Field, Box<dyn Fill>)>> {
        let message = self.drafts.message(draft).clone();
        let mut members = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        for field in in_order(&message) {
            if let Some(oneof) = oneof_of(&field)
                && !seen.iter().any(|name| name == oneof.name())
            {
                seen.push(oneof.name().to_owned());
                let cell = self.drafts.oneof(draft, &oneof, None)?;
                let mut case = Case::default();
                case.add(cell, Drafts::words(&oneof, |name| Some(name.to_owned())));
                let (of, fill) = self.case(draft, case, !nested);
                members.push((
                    Field::new(format!("{prefix}{}", oneof.name()), of, true),
                    fill,
                ));
            }
            let name = format!("{prefix}{}", field.name());
            if flatten && opens(&field, within) {
                let inner = self.drafts.enter(draft, &field)?;
                within.push(self.drafts.message(inner).full_name().to_owned());
                members.extend(self.members(inner, &format!("{name}_"), true, nested, within)?);
                within.pop();
                continue;
            }
            let (of, fill) = self.whole(draft, &field, nested, within)?;
            members.push((Field::new(name, of, true), fill));
        }
        Ok(members)
    }

    fn case(&self, draft: usize, case: Case, dictionary: bool) -> Made {
        let of = if dictionary {
            leaves::words()
        } else {
            DataType::Utf8
        };
        let fill = Labels::case(self.drafts.scope(draft), case, dictionary);
        (of, Box::new(fill))
    }

    /// The column of a whole field.
    fn whole(
        &mut self,
        draft: usize,
        field: &FieldDescriptor,
        nested: bool,
        within: &mut Vec<String>,
    ) -> Result<Made> {
        if field.is_map() {
            return self.map(draft, field, within);
        }
        if field.is_list() {
            return self.list(draft, field, within);
        }
        let scope = self.drafts.scope(draft);
        if recurs(field, within) {
            let leaf = self.drafts.raw(draft, field)?;
            return leaves::natural_bytes(scope, leaf);
        }
        if let Some(leaf) = self.drafts.leaf(draft, field)? {
            return leaves::natural(scope, leaf, nested, self.enums);
        }
        let inner = self.drafts.enter(draft, field)?;
        self.structure(inner, within)
    }

    fn structure(&mut self, draft: usize, within: &mut Vec<String>) -> Result<Made> {
        within.push(self.drafts.message(draft).full_name().to_owned());
        let members = self.members(draft, "", false, true, within)?;
        within.pop();
        let (fields, columns): (Vec<Field>, Vec<_>) = members.into_iter().unzip();
        let fields = Fields::from(fields);
        let (scope, present) = (self.drafts.scope(draft), self.drafts.present(draft));
        let fill = Structs::new(scope, present, fields.clone(), columns);
        Ok((DataType::Struct(fields), Box::new(fill)))
    }

    fn list(
        &mut self,
        draft: usize,
        field: &FieldDescriptor,
        within: &mut Vec<String>,
    ) -> Result<Made> {
        let recurs = recurs(field, within);
        let json = matches!(field.kind(), Type::Message(m) if matches!(WellKnown::of(&m), Some(WellKnown::Json)));
        let elements = self.drafts.list(draft, field, recurs || json)?;
        let (of, items) = match elements.of {
            ElementsOf::Values(leaf) if recurs => leaves::natural_bytes(elements.scope, leaf)?,
            ElementsOf::Values(leaf) => leaves::natural(elements.scope, leaf, true, self.enums)?,
            ElementsOf::Messages { draft } => match self.drafts.whole_leaf(draft)? {
                Some(leaf) => leaves::natural(elements.scope, leaf, true, self.enums)?,
                None => self.structure(draft, within)?,
            },
        };
        let item = Arc::new(Field::new_list_field(of, true));
        let place = Place {
            scope: self.drafts.scope(draft),
            cell: elements.cell,
            present: self.drafts.present(draft),
            elements: elements.scope,
        };
        let fill = Lists::new(place, Arc::clone(&item), items);
        Ok((DataType::List(item), Box::new(fill)))
    }

    fn map(
        &mut self,
        draft: usize,
        field: &FieldDescriptor,
        within: &mut Vec<String>,
    ) -> Result<Made> {
        let elements = self.drafts.list(draft, field, false)?;
        let ElementsOf::Messages { draft: entry } = elements.of else {
            return Err(Error::internal("a map whose entries are no messages"));
        };
        let message = self.drafts.message(entry).clone();
        let key = self
            .drafts
            .value(entry, &message.map_entry_key_field(), None)?;
        let (key_type, keys) = leaves::natural(elements.scope, key.clone(), true, self.enums)?;
        let value = message.map_entry_value_field();
        let (value_type, values) = self.whole(entry, &value, true, within)?;
        let of = types::map_of(key_type, Field::new("value", value_type, true));
        let DataType::Map(entries, _) = &of else {
            return Err(Error::internal("a map type that is none"));
        };
        let place = Place {
            scope: self.drafts.scope(draft),
            cell: elements.cell,
            present: self.drafts.present(draft),
            elements: elements.scope,
        };
        let fill = Maps::new(place, Arc::clone(entries), key, keys, values);
        Ok((of.clone(), Box::new(fill)))
    }
}

/// The fields of a message as its `.proto` file has them.
fn in_order(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    let declared = message.descriptor_proto().field.iter();
    let fields =
        declared.filter_map(|field| message.get_field(u32::try_from(field.number()).ok()?));
    fields.collect()
}

/// Whether a field holds a message that it is inside of.
fn recurs(field: &FieldDescriptor, within: &[String]) -> bool {
    matches!(field.kind(), Type::Message(m) if within.iter().any(|name| name == m.full_name()))
}

/// Whether a field is one message with fields of its own, and not one of those that it is in.
fn opens(field: &FieldDescriptor, within: &[String]) -> bool {
    match field.kind() {
        Type::Message(message) => {
            !field.is_list()
                && !field.is_map()
                && WellKnown::of(&message).is_none()
                && message.fields().len() > 0
                && !within.iter().any(|name| name == message.full_name())
        }
        _ => false,
    }
}
