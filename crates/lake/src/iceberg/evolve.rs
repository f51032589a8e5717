//! A table's schema follows that of the rows: new columns, wider types, new names; also within structs,
//! lists and maps. What rows lack is null.
//!
//! The schema that a pipeline writes with is settled when the table is opened, field ids included, and
//! travels with the prepared files; it becomes the table's in the commit of the first files that need
//! it. Others may have changed the schema meanwhile: then the two are united at the commit. Where they
//! have taken ids or names that our files use, the files are written again under other ids (see
//! `readdress.rs`). Start with [`plan`] here, and with [`unite`](super::unite::unite).

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::Schema as ArrowSchema;
use calve_engine::error::{Error, Result};
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType,
    TableMetadata, Type,
};
use serde::{Deserialize, Serialize};

use super::schema::{fits, show, table_schema};

/// In which ways a table may follow the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evolution {
    /// New columns are added.
    pub add: bool,
    /// Types become wider.
    pub widen: bool,
    /// Columns that get another name, old to new; a dot leads into a struct.
    pub rename: BTreeMap<String, String>,
    /// New columns that are added in any case: they are calve's, and not the rows'.
    pub own: Vec<String>,
    /// Columns whose type stays as it is, since something outside of the table depends on it.
    pub fixed: Vec<String>,
}

impl Evolution {
    /// Whether the table has to be what the rows are.
    fn is_strict(&self) -> bool {
        !self.add && !self.widen
    }
}

/// A schema that a table is to get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evolved {
    /// Field ids above it are of new columns.
    pub(crate) base: i32,
    /// Columns that get another name: field ids and former names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) renamed: BTreeMap<i32, String>,
    pub(crate) schema: Schema,
}

/// What a comparison of table and rows found.
#[derive(Debug)]
pub(super) struct Planned {
    /// The schema to write with, where it is another than the table's.
    pub(super) evolved: Option<Evolved>,
    /// Lines that say what is refused; empty: nothing. `-` is the table's, `+` the pipeline's.
    pub(super) refused: Vec<String>,
}

/// What the table's schema has to be for rows of these columns.
///
/// # Errors
/// `Schema` for a column of a type that Iceberg does not have, or two columns of one name.
pub(super) fn plan(
    metadata: &TableMetadata,
    rows: &ArrowSchema,
    evolution: &Evolution,
) -> Result<Planned> {
    let table = metadata.current_schema();
    let wanted = table_schema(rows)?;
    let mut follow = Follow {
        metadata,
        evolution,
        next_id: metadata.last_column_id(),
        refused: Vec::new(),
        renamed: BTreeMap::new(),
        changed: false,
    };
    let renamed = follow.rename(table.as_struct().fields(), &wanted, "");
    let required = |name: &str| rows.field_with_name(name).is_ok_and(|f| !f.is_nullable());
    let fields = follow.fields(&renamed, wanted.as_struct().fields(), "", &required);
    let schema = (follow.changed && follow.refused.is_empty())
        .then(|| build(metadata, fields))
        .transpose()?;
    Ok(Planned {
        evolved: schema.map(|schema| Evolved {
            base: metadata.last_column_id(),
            renamed: follow.renamed,
            schema,
        }),
        refused: follow.refused,
    })
}

/// Whether a new column of this name is refused, since a partition field has it.
fn is_partition_field(metadata: &TableMetadata, name: &str) -> bool {
    let mut specs = metadata.partition_specs_iter();
    let mut schemas = metadata.schemas_iter();
    specs.any(|spec| spec.fields().iter().any(|field| field.name == name))
        && !schemas.any(|schema| schema.field_by_name(name).is_some())
}

pub(super) fn build(metadata: &TableMetadata, fields: Vec<NestedFieldRef>) -> Result<Schema> {
    let newest = metadata
        .schemas_iter()
        .map(|schema| schema.schema_id())
        .max();
    let keys = metadata.current_schema().identifier_field_ids();
    Schema::builder()
        .with_schema_id(newest.unwrap_or(0) + 1)
        .with_fields(fields)
        .with_identifier_field_ids(keys)
        .build()
        .map_err(|e| Error::schema("the table's columns cannot be changed so").because(e))
}

struct Follow<'a> {
    metadata: &'a TableMetadata,
    evolution: &'a Evolution,
    /// The highest field id that was ever given.
    next_id: i32,
    refused: Vec<String>,
    renamed: BTreeMap<i32, String>,
    changed: bool,
}

impl Follow<'_> {
    /// The fields under their new names, where the rows have those and the table has not.
    fn rename(
        &mut self,
        fields: &[NestedFieldRef],
        wanted: &Schema,
        above: &str,
    ) -> Vec<NestedFieldRef> {
        let taken: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        let mut renamed = Vec::new();
        for field in fields {
            let path = join(above, &field.name);
            let mut field = field.as_ref().clone();
            if let Some(new) = self.evolution.rename.get(&path) {
                let new = new.rsplit_once('.').map_or(new.as_str(), |(_, name)| name);
                let comes = wanted.field_by_name(&join(above, new)).is_some();
                let of_partition = above.is_empty() && is_partition_field(self.metadata, new);
                let free = !taken.contains(&new) && !of_partition;
                if comes && free {
                    self.renamed.insert(field.id, field.name.clone());
                    new.clone_into(&mut field.name);
                    self.changed = true;
                }
            }
            if let Type::Struct(inside) = &*field.field_type {
                let path = join(above, &field.name);
                let inside = self.rename(inside.fields(), wanted, &path);
                field.field_type = Box::new(Type::Struct(StructType::new(inside)));
            }
            renamed.push(Arc::new(field));
        }
        renamed
    }

    /// The table's fields as they have to be, the new ones behind.
    fn fields(
        &mut self,
        has: &[NestedFieldRef],
        wanted: &[NestedFieldRef],
        above: &str,
        never_null: &dyn Fn(&str) -> bool,
    ) -> Vec<NestedFieldRef> {
        let mut fields = Vec::new();
        for field in has {
            let path = join(above, &field.name);
            let not_null = if field.required { " not null" } else { "" };
            let minus = format!("- {path} {}{not_null}", show(&field.field_type));
            let mut field = field.clone();
            match wanted.iter().find(|want| want.name == field.name) {
                None if field.required || self.evolution.is_strict() => self.refused.push(minus),
                None => {}
                Some(want) => {
                    let nulls = field.required && !(above.is_empty() && never_null(&field.name));
                    let follows = self.follow(&field.field_type, &want.field_type, &path);
                    match follows {
                        Some(wider) if !nulls => {
                            if wider != *field.field_type {
                                let mut wide = field.as_ref().clone();
                                wide.field_type = Box::new(wider);
                                field = Arc::new(wide);
                            }
                        }
                        _ => {
                            let never = above.is_empty() && never_null(&want.name);
                            let not_null = if never { " not null" } else { "" };
                            self.refused.push(minus);
                            self.refused
                                .push(format!("+ {path} {}{not_null}", show(&want.field_type)));
                        }
                    }
                }
            }
            fields.push(field);
        }
        for want in wanted {
            if has.iter().any(|field| field.name == want.name) {
                continue;
            }
            if above.is_empty() && is_partition_field(self.metadata, &want.name) {
                // Iceberg refuses it, and would at the commit.
                self.refused.push(format!(
                    "+ {} {} (the name of a partition field)",
                    want.name,
                    show(&want.field_type)
                ));
            } else if let Some(now) = self.name_since(&join(above, &want.name)) {
                // Its values would be in two columns.
                self.refused.push(format!(
                    "+ {} {} (the table's {now} had this name: call it so, or rename it back)",
                    join(above, &want.name),
                    show(&want.field_type)
                ));
            } else if self.evolution.add
                || (above.is_empty() && self.evolution.own.contains(&want.name))
            {
                self.changed = true;
                fields.push(self.fresh(want));
            } else {
                let path = join(above, &want.name);
                self.refused
                    .push(format!("+ {path} {}", show(&want.field_type)));
            }
        }
        fields
    }

    /// What a column of the table is called now that others have renamed; none: it has gone, or was never
    /// there.
    fn name_since(&self, path: &str) -> Option<&str> {
        let table = self.metadata.current_schema();
        let mut schemas = self.metadata.schemas_iter();
        let now = schemas.find_map(|schema| {
            let now = table.name_by_field_id(schema.field_id_by_name(path)?)?;
            (now != path).then_some(now)
        })?;
        let ours = self.evolution.rename.get(path);
        let is_ours = ours.is_some_and(|new| now.rsplit('.').next() == new.rsplit('.').next());
        (!is_ours).then_some(now)
    }

    /// The type that holds what the table has and what the rows bring; none: there is none.
    fn follow(&mut self, has: &Type, wanted: &Type, path: &str) -> Option<Type> {
        let never = |_: &str| false;
        match (has, wanted) {
            (Type::Struct(has), Type::Struct(wanted)) => {
                let fields = self.fields(has.fields(), wanted.fields(), path, &never);
                Some(Type::Struct(StructType::new(fields)))
            }
            (Type::List(has), Type::List(wanted)) => {
                let path = join(path, "element");
                let inside = (&has.element_field, &wanted.element_field);
                let element = self.follow(&inside.0.field_type, &inside.1.field_type, &path)?;
                Some(Type::List(ListType::new(with_type(inside.0, element))))
            }
            (Type::Map(has), Type::Map(wanted)) => {
                let (key, others) = (&has.key_field, &wanted.key_field);
                if show(&key.field_type) != show(&others.field_type) {
                    return None;
                }
                let path = join(path, "value");
                let inside = (&has.value_field, &wanted.value_field);
                let value = self.follow(&inside.0.field_type, &inside.1.field_type, &path)?;
                let value = with_type(inside.0, value);
                Some(Type::Map(MapType::new(key.clone(), value)))
            }
            _ if fits(wanted, has) => Some(has.clone()),
            (Type::Primitive(from), Type::Primitive(to))
                if self.evolution.widen && widens(from, to) && !self.is_fixed(path) =>
            {
                self.changed = true;
                Some(wanted.clone())
            }
            _ => None,
        }
    }

    fn is_fixed(&self, path: &str) -> bool {
        self.evolution.fixed.iter().any(|name| name == path)
    }

    /// A field with ids of its own.
    fn fresh(&mut self, field: &NestedField) -> NestedFieldRef {
        self.next_id += 1;
        let mut fresh = field.clone();
        fresh.id = self.next_id;
        fresh.field_type = Box::new(match &*field.field_type {
            Type::Struct(inside) => {
                let inside = inside.fields().iter().map(|field| self.fresh(field));
                Type::Struct(StructType::new(inside.collect()))
            }
            Type::List(list) => Type::List(ListType::new(self.fresh(&list.element_field))),
            Type::Map(map) => {
                let key = self.fresh(&map.key_field);
                Type::Map(MapType::new(key, self.fresh(&map.value_field)))
            }
            Type::Primitive(_) => field.field_type.as_ref().clone(),
        });
        Arc::new(fresh)
    }
}

pub(super) fn join(above: &str, name: &str) -> String {
    if above.is_empty() {
        name.to_owned()
    } else {
        format!("{above}.{name}")
    }
}

pub(super) fn with_type(field: &NestedField, of: Type) -> NestedFieldRef {
    let mut field = field.clone();
    field.field_type = Box::new(of);
    Arc::new(field)
}

/// Whether Iceberg lets a column of `from` become one of `to`, in every format version (specification,
/// "Schema evolution").
pub(super) fn widens(from: &PrimitiveType, to: &PrimitiveType) -> bool {
    use PrimitiveType as P;
    match (from, to) {
        (P::Int, P::Long) | (P::Float, P::Double) => true,
        (
            P::Decimal {
                precision: from,
                scale: a,
            },
            P::Decimal {
                precision: to,
                scale: b,
            },
        ) => a == b && from < to,
        _ => false,
    }
}

#[cfg(test)]
#[path = "evolve_tests.rs"]
mod tests;
