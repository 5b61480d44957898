//! The committed OpenAPI document is current.

use std::path::PathBuf;

#[test]
fn the_committed_document_is_what_the_routes_say() {
    let document = serde_json::to_string_pretty(&api::openapi()).unwrap() + "\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("SOCKEYE_REWRITE").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == document, "docs/openapi.json is not current: run SOCKEYE_REWRITE=1 cargo nextest run -p api");
}

#[test]
fn every_route_but_the_health_check_wants_a_token() {
    let document = serde_json::to_value(api::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 17, "{} paths", paths.len());
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            assert_eq!(operation.get("security").is_some(), path != "/healthz", "{method} {path}");
        }
    }
}

#[test]
fn what_is_said_to_stand_in_a_path_stands_there() {
    let document = serde_json::to_value(api::openapi()).unwrap();
    let mut seen = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                let stands = path.contains(&format!("{{{name}}}"));
                assert_eq!(parameter["in"] == "path", stands, "{method} {path}: {name}");
                assert_eq!(parameter["required"] == true, stands || ["from", "to"].contains(&name), "{path}: {name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen} parameters");
}
