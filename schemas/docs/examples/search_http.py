#!/usr/bin/env python3
"""Asks a gateway with nothing but Python's own library.

    python3 search_http.py [--url http://127.0.0.1:8484] [--key KEY] --with Smiling --without Male [--image face.jpg] [-k 5]

Prints item, distance and how many of the asked attributes agree; with --thumbnails DIR it saves the pictures found.
"""
import argparse
import base64
import json
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request


class Gateway:
    def __init__(self, url, key=None):
        self.url = url.rstrip("/")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}

    def open(self, path, body=None):
        """A request; one that came too early is sent again when the gateway says so."""
        headers = dict(self.headers)
        if body is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(body).encode()
        for _ in range(5):
            try:
                return urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers))
            except urllib.error.HTTPError as error:
                problem = json.load(error)
                if error.code not in (429, 503):
                    nearest = "".join(f"; did you mean {name}?" for name in problem["nearest"])
                    sys.exit(f"{problem['title']}: {problem['detail']}{nearest}")
                time.sleep(problem["retry_after"] or 1)
        sys.exit("the gateway has no time")

    def search(self, question):
        return json.load(self.open("/v1/search", question))

    def thumbnail(self, hit):
        where = urllib.parse.urlencode(hit["image"])
        return self.open(f"/v1/thumbnails/{urllib.parse.quote(hit['item'], safe='')}?{where}").read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8484")
    parser.add_argument("--key")
    parser.add_argument("--alias", default="main")
    parser.add_argument("--with", dest="having", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--image", type=pathlib.Path)
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--thumbnails", type=pathlib.Path)
    args = parser.parse_args()

    terms = []
    if args.having or args.without:
        terms.append({"term": {"attributes": {"with": args.having, "without": args.without}}})
    if args.image:
        terms.append({"term": {"image": {"bytes": base64.b64encode(args.image.read_bytes()).decode()}}})
    gateway = Gateway(args.url, args.key)
    found = gateway.search({"alias": args.alias, "k": args.k, "terms": terms, "explain": bool(args.having or args.without)})
    explained = found["explanation"]["hits"] if found["explanation"] else [None] * len(found["hits"])
    for hit, why in zip(found["hits"], explained):
        agrees = f"  {why['agrees']} of {len(why['attributes'])}" if why else ""
        print(f"{hit['item']}  {hit['distance']:.4f}{agrees}")
        if args.thumbnails:
            args.thumbnails.mkdir(parents=True, exist_ok=True)
            name = hit["item"].replace("/", "_") + ".jpg"
            (args.thumbnails / name).write_bytes(gateway.thumbnail(hit))


main()
