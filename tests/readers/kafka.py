"""Reads weir's topic with what others have made: confluent-kafka for the messages, pyarrow and ClickHouse for their bodies.

usage: kafka.py BOOTSTRAP TOPIC [ENCODING]

Prints, for each of those that read it, one line: its name, then flows, bytes and packets by protocol as JSON. A body is an
Arrow IPC stream by itself; the header `weir-table` says of which table. With ENCODING, `json` or `protobuf`, the topic is a
copy that `weir relay` has made: ClickHouse reads the one, protobuf's own classes (from docs/weir.proto) the other.
"""

import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import chdb
import confluent_kafka
import pyarrow.compute
import pyarrow.ipc


def bodies(bootstrap, topic):
    """The bodies of the table `flows`, of all partitions, from the first offset to the last."""
    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": "another", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    ends = {number: consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, number), timeout=20) for number in partitions}
    consumer.assign([confluent_kafka.TopicPartition(topic, number, low) for number, (low, _) in ends.items()])
    left = {number for number, (low, high) in ends.items() if low < high}
    while left:
        message = consumer.poll(20)
        if message is None:
            sys.exit(f"nothing more came of the partitions {left}")
        if message.error():
            sys.exit(str(message.error()))
        headers = {key: value.decode() for key, value in message.headers()}
        if headers["weir-table"] == "flows":
            yield message.value()
        if message.offset() + 1 >= ends[message.partition()][1]:
            left.discard(message.partition())
    consumer.close()


def by_pyarrow(streams):
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for stream in streams:
        table = pyarrow.ipc.open_stream(stream).read_all()
        for protocol in pyarrow.compute.unique(table["proto_ver"]).to_pylist():
            rows = table.filter(pyarrow.compute.equal(table["proto_ver"], protocol))
            sums[protocol][0] += rows.num_rows
            for place, column in ((1, "bytes"), (2, "packets")):
                sums[protocol][place] += pyarrow.compute.sum(rows[column]).as_py() or 0
    return sums


def by_clickhouse(streams):
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for stream in streams:
        with tempfile.NamedTemporaryFile(suffix=".arrows") as file:
            file.write(stream)
            file.flush()
            query = f"select proto_ver, count(), sum(bytes), sum(packets) from file('{file.name}', 'ArrowStream') group by 1"
            for row in json.loads(str(chdb.query(query, "JSONCompact")))["data"]:
                for place, value in enumerate(row[1:]):
                    sums[row[0]][place] += int(value or 0)
    return sums


def by_json(texts):
    sums = {}
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.writelines(texts)
        file.flush()
        query = f"select proto_ver, count(), sum(bytes), sum(packets) from file('{file.name}', 'JSONEachRow') group by 1"
        for row in json.loads(str(chdb.query(query, "JSONCompact")))["data"]:
            sums[row[0]] = [int(value or 0) for value in row[1:]]
    return sums


def by_protobuf(messages):
    docs = pathlib.Path(__file__).resolve().parents[2] / "docs"
    sums = collections.defaultdict(lambda: [0, 0, 0])
    with tempfile.TemporaryDirectory() as folder:
        compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{docs}", f"--python_out={folder}", "weir.proto"]
        subprocess.run(compiler, check=True)
        sys.path.insert(0, folder)
        import weir_pb2
    for message in messages:
        rows = weir_pb2.FlowRows()
        rows.ParseFromString(message)
        for row in rows.rows:
            assert len(row.exporter_addr) in (4, 16) and row.HasField("received_at")
            assert not row.HasField("src_addr") or len(row.src_addr) in (4, 16)
            for place, value in enumerate((1, row.bytes, row.packets)):
                sums[row.proto_ver][place] += value
    return sums


def main():
    streams = list(bodies(*sys.argv[1:3]))
    encodings = {
        "": (("pyarrow", by_pyarrow), ("clickhouse", by_clickhouse)),
        "json": (("json", by_json),),
        "protobuf": (("protobuf", by_protobuf),),
    }
    for name, read in encodings["".join(sys.argv[3:4])]:
        print(name, json.dumps(dict(sorted(read(streams).items()))), flush=True)


if __name__ == "__main__":
    main()
