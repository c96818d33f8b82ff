//! What is generated is current, and the schema takes what the reader takes. `MAINSTAY_UPDATE=1` writes the files anew.

use std::path::Path;

use mainstay_fleet::{generated, schema};
use serde_json::Value;

#[test]
fn generated_files_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut stale = Vec::new();
    for (path, text) in generated() {
        let path = root.join(path);
        if std::env::var_os("MAINSTAY_UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "not current; MAINSTAY_UPDATE=1 writes them: {stale:?}");
}

/// The schema's node for a path of keys, through sections and named entries.
fn at<'s>(schema: &'s Value, path: &[&str]) -> &'s Value {
    path.iter().fold(schema, |node, key| {
        let node = node
            .get("anyOf")
            .and_then(|all| all.as_array()?.iter().find(|one| one["type"] == "object"))
            .unwrap_or(node);
        node["properties"].get(key).unwrap_or(&node["additionalProperties"])
    })
}

#[test]
fn the_schema_knows_every_key() {
    let schema = schema();
    assert_eq!(schema["required"], serde_json::json!(["fleet", "clusters"]));
    assert_eq!(schema["additionalProperties"], false);
    for path in [
        &["clusters", "orders", "backup", "keep", "within"][..],
        &["clusters", "orders", "access", "tls", "mode"],
        &["vaults", "main", "url"],
        &["recovery_groups", "shop", "exact", "stall"],
        &["environments", "local", "clusters", "orders", "backup", "keep", "within"],
        &["tiers", "t1", "total", "rpo"],
    ] {
        let node = at(&schema, path);
        assert!(node["description"].is_string(), "{path:?}: {node}");
    }
    assert_eq!(at(&schema, &["clusters", "orders"])["required"], serde_json::json!(["engine"]));
    assert_eq!(at(&schema, &["environments", "local", "clusters", "orders"]).get("required"), None);
}
