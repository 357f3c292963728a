#!/usr/bin/env python3
"""Verifies bundles of approvals (docs/bundle.md), independently of notation-hsm. Needs python3-cryptography.

verify-bundle.py FILE...   each FILE is a list of cases, such as docs/vectors/approvals.json: prints one line for each,
and exits with 1 if one has another outcome than its field "refused" says."""
import base64, hashlib, json, struct, sys
from datetime import datetime
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

def need(condition, why):
    if not condition:
        raise ValueError(why)

def name(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()

def unbase64(text):
    return base64.b64decode(text, validate=True)

def read(data, kind=None):
    """Reads canonical JSON (RFC 8785 with integers alone), of a type."""
    value = json.loads(data)
    again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    need(again == data and (kind is None or value.get("type") == kind), "not canonical, or of another type")
    return value

def check(key, signature, data):
    """Verifies a signature of a key: ECDSA in DER, RSA-PSS with SHA-256, or Ed25519."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        key.verify(signature, data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    else:
        digest = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}[key.key_size]()
        key.verify(signature, data, ec.ECDSA(digest))

def strings(data):
    """Splits the strings of an SSH message."""
    while data:
        size = struct.unpack(">I", data[:4])[0]
        need(len(data) >= 4 + size, "cut short")
        yield data[4:4 + size]
        data = data[4 + size:]

def check_ssh(public, armoured, document):
    begin, *lines, end, _ = armoured.decode().split("\n")
    need((begin, end) == ("-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"), "armour")
    raw = unbase64("".join(lines))
    need(raw[:10] == b"SSHSIG\0\0\0\1", "not an SSHSIG")
    signer, namespace, reserved, digest, signature = strings(raw[10:])
    need(signer == public and namespace == b"approval@notation-hsm" and reserved == b"", "SSHSIG of something else")
    message = hashlib.new({b"sha256": "sha256", b"sha512": "sha512"}[digest], document).digest()
    parts = (namespace, reserved, digest, message)
    signed = b"SSHSIG" + b"".join(struct.pack(">I", len(s)) + s for s in parts)
    kind, blob = strings(signature)
    need(kind == next(strings(public)), "kind of SSH key")
    if kind.startswith(b"ecdsa-"):
        blob = encode_dss_signature(*(int.from_bytes(n, "big") for n in strings(blob)))
    check(serialization.load_ssh_public_key(kind + b" " + base64.b64encode(public)), blob, signed)

def check_passkey(credential, envelope, document):
    passkey, public = credential["passkey"], unbase64(credential["public"])
    data, client = unbase64(envelope["authenticator_data"]), unbase64(envelope["client_data"])
    challenge = base64.urlsafe_b64encode(hashlib.sha256(document).digest()).rstrip(b"=").decode()
    said, flags = json.loads(client), data[32]
    need(said["type"] == "webauthn.get" and said["origin"] in passkey["origins"], "a passkey of another page")
    need(said["challenge"] == challenge, "a passkey of another approval")
    need(data[:32] == hashlib.sha256(passkey["rp_id"].encode()).digest() and flags & 0x45 == 5, "not verified the user")
    need(bool(flags & 8) == passkey["backup_eligible"] and flags & 0x18 != 0x10, "backup flags")
    need(len(public) == 77 and public[:10] == bytes.fromhex("a5010203262001215820") and
         public[42:45] == bytes.fromhex("225820"), "not ES256") # COSE key
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + public[10:42] + public[45:])
    check(key, unbase64(envelope["signature"]), data + hashlib.sha256(client).digest())

def approval(envelope, credential):
    """Returns the approval of an envelope, verified under a credential."""
    document = unbase64(envelope["approval"])
    public, signature = unbase64(credential["public"]), unbase64(envelope["signature"])
    if credential["kind"] == "key":
        kind = "application/vnd.notation-hsm.approval.v1+json"
        check(serialization.load_der_public_key(public), signature,
              b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(document), document))
    elif credential["kind"] == "ssh":
        check_ssh(public, signature, document)
    else:
        check_passkey(credential, envelope, document)
    return read(document, "approval/v1")

def included(entry, index, size, proof, root):
    """Verifies an inclusion proof (RFC 9162 section 2.1.3.2)."""
    node, last = hashlib.sha256(b"\0" + entry).digest(), size - 1
    need(0 <= index < size, "index")
    for sibling in proof:
        need(last > 0, "proof too long")
        if index & 1 or index == last:
            node = hashlib.sha256(b"\1" + sibling + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\1" + node + sibling).digest()
        index, last = index >> 1, last >> 1
    need(last == 0 and node == root, "an entry is not in the log")

def checkpoint(note, demand):
    """Returns origin, size and root of a checkpoint that the log and enough witnesses have signed."""
    text, _, lines = note.partition("\n\n")
    text, by, cosigned = text + "\n", set(), set()
    origin, size, root = text.split("\n")[:3]
    for line in lines.rstrip("\n").split("\n"):
        dash, signer, signature = line.split(" ")
        signature = unbase64(signature)
        for vkey in demand["log"] + demand["witnesses"]:
            owner, key_id, key = vkey.split("+", 2)
            key = unbase64(key)
            if (owner, key_id) != (signer, signature[:4].hex()):
                continue
            if key[0] == 4: # Ed25519 with a time
                at = struct.unpack(">Q", signature[4:12])[0]
                ed25519.Ed25519PublicKey.from_public_bytes(key[1:]).verify(
                    signature[12:], b"cosignature/v1\ntime %d\n" % at + text.encode())
                cosigned.add(key)
            elif key[0] == 2: # ECDSA with SHA-256
                public = serialization.load_der_public_key(key[1:])
                public.verify(signature[4:], text.encode(), ec.ECDSA(hashes.SHA256()))
                by.add(owner)
            else:
                ed25519.Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], text.encode())
                by.add(owner)
    need(origin in by, "the checkpoint is of another log")
    need(len(cosigned) >= demand["cosigned"], "too few witnesses")
    return origin, int(size), unbase64(root)

def agreed(groups, votes):
    """Reports whether each person can be given one place, so that the quorums are full."""
    places = [g for g in groups for _ in range(g["quorum"])]
    taken = {}
    able = lambda p, g: p in g["members"] and any(
        v["approver"] == p and v["kind"] in g["kinds"] and (v["kind"] != "passkey" or
        (v["passkey"]["attested"] or not g["attested"]) and
        (not v["passkey"]["backup_eligible"] or not g["device_bound"])) for v in votes)
    def place(i, seen):
        for p in {v["approver"] for v in votes} - seen:
            if able(p, places[i]):
                seen.add(p)
                if p not in taken or place(taken[p], seen):
                    taken[p] = i
                    return True
        return False
    return len(places) > 0 and all(place(i, set()) for i in range(len(places)))

def verify(data, wanted, demand, now):
    """Fails unless a bundle shows that enough people agreed to the signature that is wanted."""
    need(len(data) <= 1 << 20, "too large")
    bundle = read(data, "approvals/v1")
    need(set(bundle) == {"approvals", "checkpoint", "entries", "rules", "statement", "type"}, "fields")
    statement = unbase64(bundle["statement"])
    digest, p = name(statement), read(statement)["predicate"]
    algorithm, digits = wanted["digest"].split(":")
    need(p["action"] == "use" and "change" not in p and p["key"]["leaf"] == wanted["leaf"]
         and p["expiry"] == wanted["expiry"], "people agreed to another signature")
    need(any(t["digest"] == wanted["digest"] and t["format"] == "notation" and s["digest"] == {algorithm: digits}
             and t.get("annotations", {}) == (wanted["annotations"] or {})
             and wanted["media_type"] in ("", t["media_type"]) and wanted["size"] in (0, t["size"])
             for t, s in zip(p["targets"], read(statement)["subject"])), "people agreed to another artifact")
    rules, named = [name(unbase64(r)) for r in bundle["rules"]], {r["digest"] for n in p["needs"] for r in n["rules"]}
    need(len(rules) == len(set(rules)) and set(rules) <= named, "rules")
    origin, size, root = checkpoint(bundle["checkpoint"], demand)
    need(p["log"] in {v.split("+")[0] for v in demand["log"]}, "people agreed to a request of another log")
    credentials = {name(d): read(d, "credential/v1") for d in map(unbase64, demand["credentials"])}
    left, seen, last, request, intent, standing, first = bundle["approvals"], set(), -1, None, None, [], {}
    found = None
    for item in bundle["entries"]:
        entry = unbase64(item["entry"])
        need(item["index"] > last, "entries are not in order")
        last = item["index"]
        included(entry, last, size, [unbase64(h) for h in item["hashes"]], root)
        e = read(entry)
        e = dict.fromkeys("digest key leaf payload person request retry signature statement what".split(), "") | e
        at = datetime.fromisoformat(e["time"].replace("Z", "+00:00")).timestamp()
        need(e["request"] == p["request"], "an entry of another request")
        decision = {"approved/v1": "approve", "rejected/v1": "reject", "withdrawn/v1": "withdraw"}.get(e["type"])
        vote = None
        if decision: # also after the signature: each approval is in the log
            need(e["statement"] == digest, "a decision about another statement")
            if left and name(unbase64(left[0])) == e["approval"]:
                envelope = read(unbase64(left[0]))
                need(name(unbase64(envelope["approval"])) == e["signed"] and envelope["credential"] == e["credential"]
                     and e["signed"] not in seen, "an entry of another approval")
                left = left[1:]
                seen.add(e["signed"])
                if vote := credentials.get(e["credential"]):
                    a = approval(envelope, vote)
                    need((a["approver"], a["approver"], a["decision"], a["statement"]) ==
                         (vote["approver"], e["approver"], decision, digest), "an approval of something else")
        if found:
            continue
        need((request is None) == (e["type"] == "request/v1"), "not one request")
        if e["type"] == "request/v1":
            request = e
            need((e["statement"], e["what"], e["key"], e["leaf"]) ==
                 (digest, "", p["key"]["name"], wanted["leaf"]), "the request is another")
        elif decision == "approve":
            standing = standing + [(e["approver"], vote)]
        elif decision == "withdraw":
            standing = [s for s in standing if s[0] != e["approver"]]
        elif e["type"] == "intent/v1":
            intent, before, asked = e, standing, at
        elif e["type"] == "signed/v1":
            need(intent and intent["payload"] == e["payload"], "a signature without its intent")
            if (e["payload"], e["signature"]) == (wanted["payload"], wanted["signature"]):
                need((intent["digest"], intent["leaf"], intent["key"], intent["statement"]) ==
                     (wanted["digest"], wanted["leaf"], p["key"]["name"], digest), "the intent is another")
                again = asked - first.get(intent["digest"], 0) <= 900
                need(again if intent["retry"] else asked < p["not_after"], "signed when the approvals had expired")
                found = at
            elif not intent["retry"] or intent["digest"] not in first:
                first[intent["digest"]] = at
            intent = None
        else:
            need(e["type"] in ("failed/v1", "lost/v1"), "rejected, ended or unknown: " + e["type"])
            intent = None
    need(not left, "an approval is not in the log")
    need(found, "the log does not have this signature")
    need(not demand["max_age"] or -300 <= now - found <= demand["max_age"], "too old")
    votes = [v for _, v in before if v and v["approver"] != request["person"]]
    need(agreed(demand["groups"], votes), "too few people agreed")

wrong = 0
for path in sys.argv[1:]:
    for case in json.load(open(path, encoding="utf-8")):
        outcome, expected = "accepted", "refused" if case.get("refused") else "accepted"
        case["demand"]["witnesses"] = case["demand"]["witnesses"] or []
        try:
            verify(unbase64(case["bundle"]), case["signature"], case["demand"], case["now"])
        except Exception as e: # whatever does not fit is a reason to refuse
            outcome = "refused"
            case["why"] = f": {type(e).__name__} {e}"
        wrong += outcome != expected
        print(f"{case['name']}: {outcome}{case.get('why', '')}{'' if outcome == expected else ', WRONGLY'}")
sys.exit(1 if wrong else 0)
