#!/usr/bin/env python3
"""Asks the searchers over NATS, without a gateway (pip install nats-py).

    python3 nats_search.py nats://127.0.0.1:4222 Smiling
"""
import asyncio
import json
import sys

import nats


async def main(url, attribute):
    connection = await nats.connect(url)
    terms = [{"weight": 1.0, "term": {"attributes": {"with": [attribute], "without": []}}}]
    body = {"alias": "main", "terms": terms, "k": 5, "min_coverage": 0.0, "deadline_ms": 5000}
    question = {"message": "search-request", "version": 1, "body": body}
    reply = await connection.request("likeness.v1.search", json.dumps(question).encode(), timeout=6)
    answer = json.loads(reply.data)["body"]
    if "error" in answer:
        sys.exit(f"{answer['error']['message']} {answer['error']['nearest']}")
    for hit in answer["found"]["hits"]:
        print(f"{hit['item']}  {hit['distance']:.4f}")
    await connection.close()


asyncio.run(main(*sys.argv[1:3]))
