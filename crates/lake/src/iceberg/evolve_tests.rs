use std::collections::HashMap;

use arrow::datatypes::{DataType, Field};
use iceberg::{
    TableCreation,
    spec::{FormatVersion, TableMetadataBuilder, Transform, UnboundPartitionSpec},
};

use super::{
    super::unite::{United, unite},
    *,
};

fn rows(fields: &[(&str, DataType)]) -> ArrowSchema {
    let fields = fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true));
    ArrowSchema::new(fields.collect::<Vec<_>>())
}

fn inside(fields: &[(&str, DataType)]) -> DataType {
    DataType::Struct(rows(fields).fields().clone())
}

fn list(of: DataType) -> DataType {
    DataType::List(Field::new("item", of, true).into())
}

fn creation(fields: &[(&str, DataType)]) -> TableCreation {
    TableCreation {
        name: "t".to_owned(),
        location: Some("file:///t".to_owned()),
        schema: table_schema(&rows(fields)).expect("types"),
        partition_spec: None,
        sort_order: None,
        properties: HashMap::new(),
        format_version: FormatVersion::V2,
    }
}

fn table(fields: &[(&str, DataType)]) -> TableMetadata {
    let built = TableMetadataBuilder::from_table_creation(creation(fields))
        .and_then(TableMetadataBuilder::build);
    built.expect("a table").metadata
}

fn with(metadata: &TableMetadata, schema: Schema) -> TableMetadata {
    let built = metadata
        .clone()
        .into_builder(None)
        .add_current_schema(schema)
        .and_then(TableMetadataBuilder::build);
    built.expect("the schema fits").metadata
}

/// `name:id type`, with what is inside in braces.
fn shown(fields: &[NestedFieldRef]) -> String {
    let of = |t: &Type| match t {
        Type::Struct(inside) => format!("{{{}}}", shown(inside.fields())),
        Type::List(of) => format!("[{}]", shown(std::slice::from_ref(&of.element_field))),
        other => show(other),
    };
    let one = |f: &NestedFieldRef| format!("{}:{} {}", f.name, f.id, of(&f.field_type));
    fields.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn both() -> Evolution {
    Evolution {
        add: true,
        widen: true,
        ..Evolution::default()
    }
}

fn planned(metadata: &TableMetadata, fields: &[(&str, DataType)], how: &Evolution) -> Planned {
    plan(metadata, &rows(fields), how).expect("types")
}

#[test]
fn a_table_follows_at_any_depth() {
    let metadata = table(&[
        ("id", DataType::Int32),
        (
            "at",
            inside(&[("zip", DataType::Int32), ("x", DataType::Utf8)]),
        ),
        ("all", list(inside(&[("n", DataType::Float32)]))),
        ("old", DataType::Utf8),
    ]);
    let now = [
        ("new", list(DataType::Date32)),
        (
            "all",
            list(inside(&[
                ("m", DataType::Boolean),
                ("n", DataType::Float64),
            ])),
        ),
        (
            "at",
            inside(&[("zip", DataType::Int64), ("town", DataType::Utf8)]),
        ),
        ("id", DataType::Int64),
    ];
    let Planned { evolved, refused } = planned(&metadata, &now, &both());
    assert!(refused.is_empty(), "{refused:?}");
    let schema = evolved.expect("it changes").schema;
    assert_eq!(
        shown(schema.as_struct().fields()),
        "id:1 long, at:2 {zip:5 long, x:6 string, town:9 string}, \
         all:3 [element:7 {n:8 double, m:10 boolean}], old:4 string, new:11 [element:12 date]"
    );
    // And then it is what they are.
    let after = with(&metadata, schema);
    assert!(planned(&after, &now, &both()).evolved.is_none());
}

#[test]
fn what_is_not_allowed_is_refused_line_by_line() {
    let metadata = table(&[("a", DataType::Int32), ("b", DataType::Utf8)]);
    let now = [("a", DataType::Int64), ("c", DataType::Int64)];
    let strict = Evolution::default();
    assert_eq!(
        planned(&metadata, &now, &strict).refused,
        ["- a int", "+ a long", "- b string", "+ c long"]
    );
    let only = |add, widen| Evolution {
        add,
        widen,
        ..Evolution::default()
    };
    assert_eq!(
        planned(&metadata, &now, &only(true, false)).refused,
        ["- a int", "+ a long"]
    );
    assert_eq!(
        planned(&metadata, &now, &only(false, true)).refused,
        ["+ c long"]
    );
    let fixed = Evolution {
        fixed: vec!["a".to_owned()],
        ..both()
    };
    assert_eq!(
        planned(&metadata, &now, &fixed).refused,
        ["- a int", "+ a long"]
    );
    let narrower = [("a", DataType::Utf8), ("b", DataType::Utf8)];
    assert_eq!(
        planned(&metadata, &narrower, &both()).refused,
        ["- a int", "+ a string"]
    );
}

#[test]
fn the_name_of_a_partition_field_is_refused_before_anything_is_written() {
    let spec = UnboundPartitionSpec::builder()
        .add_partition_field(1, "a_bucket", Transform::Bucket(4))
        .expect("a field")
        .build();
    let creation = TableCreation {
        partition_spec: Some(spec),
        ..creation(&[("a", DataType::Int32)])
    };
    let built = TableMetadataBuilder::from_table_creation(creation);
    let metadata = built.and_then(TableMetadataBuilder::build);
    let metadata = metadata.expect("a table").metadata;
    let now = [("a", DataType::Int32), ("a_bucket", DataType::Utf8)];
    let refused = planned(&metadata, &now, &both()).refused;
    assert_eq!(
        refused,
        ["+ a_bucket string (the name of a partition field)"]
    );
}

#[test]
fn columns_get_other_names_once() {
    let metadata = table(&[
        ("a", DataType::Int32),
        ("at", inside(&[("zip", DataType::Int32)])),
    ]);
    let how = Evolution {
        rename: [("a", "b"), ("at.zip", "at.code")]
            .map(|(old, new)| (old.to_owned(), new.to_owned()))
            .into(),
        ..both()
    };
    let now = [
        ("b", DataType::Int32),
        ("at", inside(&[("code", DataType::Int32)])),
    ];
    let ours = planned(&metadata, &now, &how).evolved.expect("it changes");
    let United::Becomes(schema) = united(&ours, &metadata) else {
        panic!("nobody did anything");
    };
    assert_eq!(
        shown(schema.as_struct().fields()),
        "b:1 int, at:2 {code:3 int}"
    );
    let schema = *schema;
    let after = with(&metadata, schema);
    assert!(planned(&after, &now, &how).evolved.is_none());
    // Rows that have the old name still: nothing to do.
    let before = [
        ("a", DataType::Int32),
        ("at", inside(&[("zip", DataType::Int32)])),
    ];
    assert!(planned(&metadata, &before, &how).evolved.is_none());
}

/// What `ours` becomes in a table that others have changed.
fn united(ours: &Evolved, now: &TableMetadata) -> United {
    unite(now, ours).expect("they fit")
}

#[test]
fn what_others_did_meanwhile_is_kept() {
    let metadata = table(&[("a", DataType::Int32)]);
    let mine = |fields: &[(&str, DataType)]| {
        let planned = planned(&metadata, fields, &both());
        planned.evolved.expect("it changes")
    };
    let ours = mine(&[("a", DataType::Int64), ("x", DataType::Utf8)]);
    let United::Becomes(schema) = united(&ours, &metadata) else {
        panic!("nobody did anything");
    };
    assert_eq!(shown(schema.as_struct().fields()), "a:1 long, x:2 string");
    // The next commit finds it there.
    let landed = with(&metadata, *schema);
    let has = united(&ours, &landed);
    assert!(
        matches!(has, United::Has(id) if id == landed.current_schema_id()),
        "{has:?}"
    );

    // Another column has got our id: ours moves, and theirs stays.
    let theirs = with(
        &metadata,
        mine(&[("a", DataType::Int32), ("y", DataType::Utf8)]).schema,
    );
    let United::Readdress(moved) = united(&ours, &theirs) else {
        panic!("the id is taken");
    };
    assert_eq!(moved, HashMap::from([(2, 3)]));

    // The same column under another id, since they had added one more before.
    let others = with(
        &metadata,
        mine(&[("y", DataType::Utf8), ("x", DataType::Utf8)]).schema,
    );
    assert_eq!(
        shown(others.current_schema().as_struct().fields()),
        "a:1 int, y:2 string, x:3 string"
    );
    let United::Readdress(moved) = united(&ours, &others) else {
        panic!("it has another id");
    };
    assert_eq!(moved, HashMap::from([(2, 3)]));

    // The same name with a type that does not fit.
    let wrong = with(
        &metadata,
        mine(&[("a", DataType::Int32), ("x", DataType::Int64)]).schema,
    );
    let error = unite(&wrong, &ours).expect_err("it does not fit");
    assert!(error.to_string().contains("column=x"), "{error}");

    // They renamed ours after it had landed: the files go into it all the same.
    let how = Evolution {
        rename: [("x".to_owned(), "z".to_owned())].into(),
        ..both()
    };
    let renamed = planned(
        &landed,
        &[("a", DataType::Int64), ("z", DataType::Utf8)],
        &how,
    );
    let renamed = with(&landed, renamed.evolved.expect("it changes").schema);
    assert!(matches!(united(&ours, &renamed), United::Has(_)));
}

#[test]
fn fields_of_new_structs_move_with_them() {
    let metadata = table(&[("a", DataType::Int32)]);
    let with_x = |of: DataType| {
        planned(&metadata, &[("x", of)], &both())
            .evolved
            .expect("new")
    };
    let ours = with_x(list(inside(&[("n", DataType::Int32)])));
    let theirs = with(&metadata, {
        let fields = [("p", DataType::Int32), ("q", DataType::Int32)];
        planned(&metadata, &fields, &both())
            .evolved
            .expect("new")
            .schema
    });
    let United::Readdress(moved) = united(&ours, &theirs) else {
        panic!("the ids are taken");
    };
    assert_eq!(moved, HashMap::from([(2, 4), (3, 5), (4, 6)]));
}

#[test]
fn a_column_that_others_have_renamed_does_not_come_again() {
    let metadata = table(&[("a", DataType::Int32), ("b", DataType::Int32)]);
    let rows = [("a", DataType::Int32), ("b", DataType::Int32)];
    let mut how = both();
    how.rename = [("b".to_owned(), "c".to_owned())].into();
    let renamed = planned(
        &metadata,
        &[("a", DataType::Int32), ("c", DataType::Int32)],
        &how,
    );
    let since = with(&metadata, renamed.evolved.expect("it changes").schema);
    let refused = planned(&since, &rows, &both()).refused;
    assert_eq!(
        refused,
        ["+ b int (the table's c had this name: call it so, or rename it back)"]
    );
    // Where the pipeline did it, it knows what it asks for.
    assert!(planned(&since, &rows, &how).refused.is_empty());
}
