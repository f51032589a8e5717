//! The table `events` as DataFusion sees it: a leaf of the plan that yields the batches it was given
//! last. A plan is made once, over an empty leaf; each run puts its batches into a copy of the leaf.

use std::{any::Any, fmt, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Result, Statistics, stats::Precision},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_expr::{EquivalenceProperties, PhysicalSortExpr, expressions::Column},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        memory::MemoryStream,
    },
};

use crate::columns::{unpack, unpacked};

/// The table that stands for the batch at hand.
#[derive(Debug)]
pub(crate) struct EventsTable {
    schema: SchemaRef,
    rising: Option<usize>,
}

impl EventsTable {
    /// Rows of a schema; SQL sees it [`unpacked`].
    pub(crate) fn new(schema: &SchemaRef) -> Self {
        Self {
            schema: unpacked(schema),
            rising: None,
        }
    }

    /// The same, where the values of column `rising` rise from row to row.
    pub(crate) fn rising(schema: &SchemaRef, rising: usize) -> Self {
        Self {
            schema: unpacked(schema),
            rising: Some(rising),
        }
    }
}

#[async_trait]
impl TableProvider for EventsTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut leaf = BatchExec::new(&self.schema, projection.cloned())?;
        if let Some(rising) = self.rising {
            leaf = leaf.rising(self.schema.field(rising).name());
        }
        Ok(Arc::new(leaf))
    }
}

/// The leaf: batches in memory, of which a projection is read.
#[derive(Clone, Debug)]
pub(crate) struct BatchExec {
    /// After the projection.
    schema: SchemaRef,
    projection: Option<Vec<usize>>,
    batches: Vec<RecordBatch>,
    properties: Arc<PlanProperties>,
}

impl BatchExec {
    /// An empty leaf over rows of `schema`, of which it yields the columns of `projection`.
    pub(crate) fn new(schema: &SchemaRef, projection: Option<Vec<usize>>) -> Result<Self> {
        let schema = match &projection {
            Some(columns) => Arc::new(schema.project(columns)?),
            None => Arc::clone(schema),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Ok(Self {
            schema,
            projection,
            batches: Vec::new(),
            properties: Arc::new(properties),
        })
    }

    /// Tells DataFusion that the values of a column rise from row to row.
    fn rising(mut self, name: &str) -> Self {
        let Ok(column) = Column::new_with_schema(name, &self.schema) else {
            return self;
        };
        let order = [PhysicalSortExpr::new_default(Arc::new(column))];
        let mut properties = PlanProperties::clone(&self.properties);
        properties.set_eq_properties(EquivalenceProperties::new_with_orderings(
            Arc::clone(&self.schema),
            [order],
        ));
        self.properties = Arc::new(properties);
        self
    }

    /// The columns of a batch that it reads, as it yields them.
    pub(crate) fn read(&self, batch: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
        let batch = match &self.projection {
            Some(columns) => batch.project(columns)?,
            None => batch.clone(),
        };
        unpack(batch, &self.schema)
    }

    /// The columns it reads, in order; none: all of them.
    pub(crate) fn projection(&self) -> Option<&[usize]> {
        self.projection.as_deref()
    }

    /// The same leaf over other batches. It shares the plan properties, so that the nodes above it
    /// can be renewed cheaply.
    fn with_batches(&self, batches: &[RecordBatch]) -> Result<Self> {
        let batches = batches
            .iter()
            .map(|batch| self.read(batch))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            batches,
            ..self.clone()
        })
    }
}

impl DisplayAs for BatchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchExec: batches={}", self.batches.len())
    }
}

impl ExecutionPlan for BatchExec {
    fn name(&self) -> &'static str {
        "BatchExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let stream = MemoryStream::try_new(self.batches.clone(), Arc::clone(&self.schema), None)?;
        Ok(Box::pin(stream))
    }

    /// Events are many, so that joins put them on the side that is not hashed. Never exact: a count
    /// that is exact may replace the aggregation.
    fn partition_statistics(&self, _: Option<usize>) -> Result<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Inexact(1 << 40);
        statistics.total_byte_size = Precision::Inexact(1 << 46);
        Ok(statistics)
    }
}

/// Whether the plan reads the leaf.
pub(crate) fn reads_leaf(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.as_any().is::<BatchExec>() || plan.children().into_iter().any(reads_leaf)
}

/// The plan over `batches`, with new nodes from the leaf to the root: a node that ran keeps its
/// metrics for ever. What does not read the leaf (the build side of a join) is kept as it is.
pub(crate) fn over(
    plan: &Arc<dyn ExecutionPlan>,
    batches: &[RecordBatch],
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(leaf) = plan.as_any().downcast_ref::<BatchExec>() {
        return Ok(Arc::new(leaf.with_batches(batches)?));
    }
    if !reads_leaf(plan) {
        return Ok(Arc::clone(plan));
    }
    let children = plan.children().into_iter();
    let children = children
        .map(|child| over(child, batches))
        .collect::<Result<_>>()?;
    Arc::clone(plan).with_new_children(children)
}

/// The leaf itself, if the plan reads it.
pub(crate) fn leaf_of(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    if plan.as_any().is::<BatchExec>() {
        return Some(Arc::clone(plan));
    }
    plan.children().into_iter().find_map(leaf_of)
}
