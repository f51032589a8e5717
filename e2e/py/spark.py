"""Reads tables with Spark, by the metadata that the catalog names; prints all rows of each, as JSON, sorted
by the first column.

usage: spark.py '[{"dir": "…", "columns": ["id", …]}, …]'    Iceberg's jar is in spark-jars of the venv
"""
import glob, json, os, sqlite3, sys

from pyspark.sql import SparkSession

jars = glob.glob(os.path.join(sys.prefix, "spark-jars", "iceberg-spark-runtime-*.jar"))
assert jars, f"no Iceberg in {sys.prefix}/spark-jars: run scripts/setup-tests --spark"
spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.jars", ",".join(jars))
    .config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.sql.shuffle.partitions", "1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
answers = []
for spec in json.loads(sys.argv[1]):
    catalog = sqlite3.connect(f"{spec['dir']}/lake/catalog.db")
    (location,) = catalog.execute("SELECT metadata_location FROM iceberg_tables").fetchone()
    rows = spark.read.format("iceberg").load(location).select(spec["columns"]).collect()
    answers.append(sorted(list(row) for row in rows))
version = spark.version
spark.stop()
print(json.dumps({"spark": version, "tables": answers}))
