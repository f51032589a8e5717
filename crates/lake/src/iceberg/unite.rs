//! A schema that files were prepared with, and a table's that others have changed meanwhile, become one.

use std::{collections::HashMap, sync::Arc};

use calve_engine::error::{Error, Result};
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, Schema, StructType, TableMetadata, Type,
};

use super::{
    evolve::{Evolved, build, join, widens, with_type},
    schema::{fits, show},
};

/// What prepared files need of the table's schema.
#[derive(Debug)]
pub(crate) enum United {
    /// The table has it: this schema describes the files.
    Has(i32),
    /// The table's schema becomes this one.
    Becomes(Box<Schema>),
    /// Others have taken what the files use: they go under these ids, old to new.
    Readdress(HashMap<i32, i32>),
}

/// How the table, as it is now, takes files that were written with `ours`.
///
/// # Errors
/// `Schema` when others have changed the table in a way that our files do not fit.
pub(crate) fn unite(metadata: &TableMetadata, ours: &Evolved) -> Result<United> {
    let table = metadata.current_schema();
    let same = metadata
        .schemas_iter()
        .find(|known| known.as_struct() == ours.schema.as_struct());
    let mut unite = Unite {
        metadata,
        ours,
        last: metadata.last_column_id(),
        moved: HashMap::new(),
        changed: false,
    };
    let fields = unite.fields(
        table.as_struct().fields(),
        ours.schema.as_struct().fields(),
        "",
    )?;
    if !unite.moved.is_empty() {
        return Ok(United::Readdress(unite.moved));
    }
    if unite.changed {
        return build(metadata, fields).map(|schema| United::Becomes(schema.into()));
    }
    Ok(United::Has(same.unwrap_or(table).schema_id()))
}

/// Ids in `ours`, and those that the table has or will have for the same; none for what stays.
///
/// # Errors
/// As [`unite`].
pub(crate) fn moved_ids(metadata: &TableMetadata, ours: &Evolved) -> Result<HashMap<i32, i32>> {
    Ok(match unite(metadata, ours)? {
        United::Readdress(moved) => moved,
        United::Has(_) | United::Becomes(_) => HashMap::new(),
    })
}

/// The schema that the table becomes by `ours`; none: it has that already.
///
/// # Errors
/// As [`unite`].
pub(crate) fn becomes(metadata: &TableMetadata, ours: &Evolved) -> Result<Option<Schema>> {
    let mut ours = ours.clone();
    loop {
        match unite(metadata, &ours)? {
            United::Has(_) => return Ok(None),
            United::Becomes(schema) => return Ok(Some(*schema)),
            United::Readdress(moved) => ours.schema = with_ids(&ours.schema, &moved)?,
        }
    }
}

struct Unite<'a> {
    metadata: &'a TableMetadata,
    ours: &'a Evolved,
    /// The highest id that the table has given.
    last: i32,
    moved: HashMap<i32, i32>,
    changed: bool,
}

impl Unite<'_> {
    fn fields(
        &mut self,
        has: &[NestedFieldRef],
        ours: &[NestedFieldRef],
        above: &str,
    ) -> Result<Vec<NestedFieldRef>> {
        let mut fields: Vec<NestedFieldRef> = has.to_vec();
        for our in ours {
            let path = join(above, &our.name);
            let by_id = fields.iter().position(|field| field.id == our.id);
            let by_name = fields.iter().position(|field| field.name == our.name);
            // A column that the table has had is known by its id, whatever its name is now; a new one by
            // its name, since others may have taken the id.
            let had = our.id <= self.ours.base || self.had(our);
            let at = if had { by_id.or(by_name) } else { by_name };
            match at {
                Some(at) => {
                    let field = fields[at].clone();
                    if field.id != our.id {
                        self.moved.insert(our.id, field.id);
                    }
                    let united = self.types(&field.field_type, &our.field_type, &path)?;
                    let mut united = with_type(&field, united);
                    if self.ours.renamed.get(&our.id) == Some(&field.name) && by_name.is_none() {
                        self.changed = true;
                        Arc::make_mut(&mut united).name.clone_from(&our.name);
                    }
                    fields[at] = united;
                }
                // Somebody dropped it: what the files have of it is read by nobody.
                None if had => {}
                None => {
                    // An id that the table has given to something else, or to what is gone by now.
                    if our.id <= self.last {
                        self.renumber(our);
                    }
                    self.changed = true;
                    fields.push(our.clone());
                }
            }
        }
        Ok(fields)
    }

    /// Whether this column was in the table at some time.
    fn had(&self, our: &NestedField) -> bool {
        let mut schemas = self.metadata.schemas_iter();
        schemas.any(|known| {
            known
                .field_by_id(our.id)
                .is_some_and(|f| f.name == our.name)
        })
    }

    fn renumber(&mut self, field: &NestedField) {
        self.last += 1;
        self.moved.insert(field.id, self.last);
        match &*field.field_type {
            Type::Struct(inside) => {
                for field in inside.fields() {
                    self.renumber(field);
                }
            }
            Type::List(list) => self.renumber(&list.element_field),
            Type::Map(map) => {
                self.renumber(&map.key_field);
                self.renumber(&map.value_field);
            }
            Type::Primitive(_) => {}
        }
    }

    fn types(&mut self, has: &Type, ours: &Type, path: &str) -> Result<Type> {
        let mut inner = |has: &NestedFieldRef, our: &NestedFieldRef, path: String| {
            if has.id != our.id {
                self.moved.insert(our.id, has.id);
            }
            let united = self.types(&has.field_type, &our.field_type, &path)?;
            Ok::<_, Error>(with_type(has, united))
        };
        match (has, ours) {
            (Type::Struct(has), Type::Struct(ours)) => {
                let fields = self.fields(has.fields(), ours.fields(), path)?;
                Ok(Type::Struct(StructType::new(fields)))
            }
            (Type::List(has), Type::List(ours)) => {
                let path = join(path, "element");
                let element = inner(&has.element_field, &ours.element_field, path)?;
                Ok(Type::List(ListType::new(element)))
            }
            (Type::Map(has), Type::Map(ours)) => {
                let key = inner(&has.key_field, &ours.key_field, join(path, "key"))?;
                let value = inner(&has.value_field, &ours.value_field, join(path, "value"))?;
                Ok(Type::Map(MapType::new(key, value)))
            }
            _ if fits(ours, has) => Ok(has.clone()),
            (Type::Primitive(from), Type::Primitive(to)) if widens(from, to) => {
                self.changed = true;
                Ok(ours.clone())
            }
            _ => Err(Error::schema(format!(
                "somebody changed the table while rows for it were prepared: column={path} table={} rows={}",
                show(has),
                show(ours)
            ))
            .hint(
                "give the table's column another name, so that the rows can be committed; or give \
                 them up with `calve checkpoint rebuild`",
            )),
        }
    }
}

/// The schema with other field ids, old to new.
///
/// # Errors
/// `Internal` when they are not unique.
pub(super) fn with_ids(schema: &Schema, moved: &HashMap<i32, i32>) -> Result<Schema> {
    let fields = schema.as_struct().fields().iter();
    Schema::builder()
        .with_schema_id(schema.schema_id())
        .with_fields(fields.map(|field| field_with_ids(field, moved)))
        .with_identifier_field_ids(schema.identifier_field_ids())
        .build()
        .map_err(|e| Error::internal("field ids are not unique").because(e))
}

fn field_with_ids(field: &NestedField, moved: &HashMap<i32, i32>) -> NestedFieldRef {
    let again = |field: &NestedFieldRef| field_with_ids(field, moved);
    let mut made = field.clone();
    made.id = moved.get(&field.id).copied().unwrap_or(field.id);
    made.field_type = Box::new(match &*field.field_type {
        Type::Struct(inside) => {
            Type::Struct(StructType::new(inside.fields().iter().map(again).collect()))
        }
        Type::List(list) => Type::List(ListType::new(again(&list.element_field))),
        Type::Map(map) => Type::Map(MapType::new(again(&map.key_field), again(&map.value_field))),
        Type::Primitive(_) => field.field_type.as_ref().clone(),
    });
    Arc::new(made)
}
