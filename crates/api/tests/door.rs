//! The door as a client sees it: a real listener, a real client.

#![allow(clippy::unwrap_used)]

use control::Control;
use protocol::order::{ExchangeReply, ExchangeRequest, Registration, Role};
use protocol::rest::{ComponentView, Register, Registered, SiteView};
use protocol::token::{AddedToken, Joined};
use reqwest::{Client, StatusCode};

struct Server {
    folder: tempfile::TempDir,
    control: Control,
    url: String,
    client: Client,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::open(folder.path()).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(api::serve(control.clone(), listener));
        Server { folder, control, url, client: Client::builder().no_proxy().build().unwrap(), served }
    }

    fn admin(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("admin.token")).unwrap().trim().to_string()
    }

    async fn get(&self, path: &str, token: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(token).send().await.unwrap()
    }

    async fn post(&self, path: &str, token: &str, body: &impl serde::Serialize) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(token).json(body).send().await.unwrap()
    }

    async fn register(&self, name: &str) -> Registered {
        let (site, role) = name.split_once('-').unwrap();
        let role = if role == "master-target" { Role::MasterTarget } else { Role::ProcessServer };
        let registration = Registration {
            name: name.into(),
            site: site.parse().unwrap(),
            role,
            address: (role == Role::MasterTarget).then(|| "127.0.0.1:1".into()),
            version: "0".into(),
            platform: "simulated".into(),
        };
        let certificate_request = identity::Request::make().unwrap().pem;
        let register = Register { registration, certificate_request };
        let answer = self.post("/api/v1/components/register", &self.admin(), &register).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    }

    async fn stop(self) {
        self.control.stop().await;
        tokio::time::timeout(std::time::Duration::from_secs(20), self.served).await.unwrap().unwrap().unwrap();
    }
}

async fn problem(answer: reqwest::Response, status: StatusCode, code: &str) -> serde_json::Value {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], code);
    assert_eq!(problem["status"], status.as_u16());
    for member in ["title", "message", "cause", "remedy"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} is missing: {problem}");
    }
    problem
}

#[tokio::test]
async fn each_token_opens_its_own_routes_and_no_others() {
    let server = Server::start().await;
    let admin = server.admin();
    let added = server.post("/api/v1/tokens", &admin, &serde_json::json!({"lasts_ms": 60_000})).await;
    let join = added.json::<AddedToken>().await.unwrap().token;
    let component = server.register("home-process-server").await.token;
    let ok = server.client.get(format!("{}/healthz", server.url)).send().await.unwrap();
    assert_eq!(ok.text().await.unwrap(), "ok");
    assert_eq!(server.get("/api/v1/items", &admin).await.status(), StatusCode::OK);
    for wrong in [join.as_str(), component.as_str(), "nonsense", ""] {
        problem(server.get("/api/v1/items", wrong).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    }
    let exchange = "/api/v1/components/home-process-server/exchange";
    let words = ExchangeRequest::default();
    assert_eq!(server.post(exchange, &component, &words).await.status(), StatusCode::OK);
    for wrong in [join.as_str(), admin.as_str(), "nonsense"] {
        problem(server.post(exchange, wrong, &words).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    }
    let other = server.register("cloud-process-server").await.token;
    problem(server.post(exchange, &other, &words).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    let registration = serde_json::json!({});
    problem(
        server.post("/api/v1/components/register", &component, &registration).await,
        StatusCode::UNAUTHORIZED,
        "CTL-014",
    )
    .await;
    // A host joins, and registers with the secret that it made and with nothing else.
    let secret = "5".repeat(64);
    let host = serde_json::json!({"secret": secret, "site": "paris", "host": "h1", "components": []});
    for wrong in [admin.as_str(), component.as_str(), "nonsense"] {
        problem(server.post("/api/v1/join", wrong, &host).await, StatusCode::CONFLICT, "CTL-024").await;
    }
    let joined: Joined = server.post("/api/v1/join", &join, &host).await.json().await.unwrap();
    let request = identity::Request::make().unwrap().pem;
    let paris = serde_json::json!({"name": "paris-process-server", "site": "paris", "role": "process-server",
        "address": null, "version": "0", "platform": "simulated", "certificate_request": request});
    let register = "/api/v1/components/register";
    problem(server.post(register, &join, &paris).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    assert_eq!(server.post(register, &secret, &paris).await.status(), StatusCode::OK);
    for path in ["/api/v1/items", "/api/v1/tokens"] {
        problem(server.get(path, &secret).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    }
    problem(server.post(exchange, &secret, &words).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    let tokens = server.get("/api/v1/tokens", &admin).await.text().await.unwrap();
    assert!(
        tokens.contains("paris-process-server") && !tokens.contains(&secret) && !tokens.contains(&join),
        "{tokens}"
    );
    // And is put out.
    let one = format!("{}/api/v1/tokens/{}?reason=sold", server.url, joined.id);
    let removed = server.client.delete(&one).bearer_auth(&secret).send().await.unwrap();
    problem(removed, StatusCode::UNAUTHORIZED, "CTL-014").await;
    let removed = server.client.delete(&one).bearer_auth(&admin).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    problem(server.post(register, &secret, &paris).await, StatusCode::UNAUTHORIZED, "CTL-014").await;
    problem(server.post("/api/v1/join", &join, &host).await, StatusCode::CONFLICT, "CTL-026").await;
    let absent = server.client.delete(format!("{}/api/v1/tokens/99", server.url)).bearer_auth(&admin);
    problem(absent.send().await.unwrap(), StatusCode::NOT_FOUND, "CTL-027").await;
    server.stop().await;
}

#[tokio::test]
async fn errors_are_problems_with_code_cause_and_remedy() {
    let server = Server::start().await;
    let admin = server.admin();
    problem(server.get("/api/v1/items/nobody", &admin).await, StatusCode::NOT_FOUND, "CTL-001").await;
    problem(server.get("/api/v1/items/nobody/points", &admin).await, StatusCode::NOT_FOUND, "CTL-001").await;
    problem(server.get("/api/v1/jobs/7", &admin).await, StatusCode::NOT_FOUND, "CTL-004").await;
    problem(server.get("/api/v1/machines?site=nowhere", &admin).await, StatusCode::NOT_FOUND, "CTL-011").await;
    problem(server.get("/api/v1/items/..%2f..", &admin).await, StatusCode::BAD_REQUEST, "CTL-005").await;
    problem(server.get("/api/v1/status?item=-rf", &admin).await, StatusCode::BAD_REQUEST, "CTL-005").await;
    problem(server.get("/api/v1/nothing", &admin).await, StatusCode::NOT_FOUND, "CTL-005").await;
    let nonsense = serde_json::json!({"item": "web01"});
    problem(server.post("/api/v1/plans", &admin, &nonsense).await, StatusCode::UNPROCESSABLE_ENTITY, "CTL-005").await;
    let commit = serde_json::json!({"item": "web01", "operation": {"operation": "commit"}});
    problem(server.post("/api/v1/plans", &admin, &commit).await, StatusCode::NOT_FOUND, "CTL-001").await;
    let huge = serde_json::json!({"item": "x".repeat(2 << 20)});
    problem(server.post("/api/v1/plans", &admin, &huge).await, StatusCode::PAYLOAD_TOO_LARGE, "CTL-005").await;
    server.stop().await;
}

#[tokio::test]
async fn an_exchange_makes_a_component_connected_and_is_held_while_there_is_nothing_to_do() {
    let server = Server::start().await;
    let admin = server.admin();
    let token = server.register("home-process-server").await.token;
    let before: Vec<ComponentView> = server.get("/api/v1/components", &admin).await.json().await.unwrap();
    assert!(!before[0].connected, "registered is not heard of");
    let exchange = "/api/v1/components/home-process-server/exchange";
    let first: ExchangeReply = server.post(exchange, &token, &ExchangeRequest::default()).await.json().await.unwrap();
    assert!(first.orders.is_empty() && first.wishes.replications.is_empty());
    let begun = std::time::Instant::now();
    let wait = ExchangeRequest { wait_ms: 300, seen: first.number, ..Default::default() };
    let second: ExchangeReply = server.post(exchange, &token, &wait).await.json().await.unwrap();
    assert!(begun.elapsed().as_millis() >= 300, "it was not held");
    assert_eq!(second.number, first.number);
    let after: Vec<ComponentView> = server.get("/api/v1/components", &admin).await.json().await.unwrap();
    assert!(after[0].connected);
    let sites: Vec<SiteView> = server.get("/api/v1/sites", &admin).await.json().await.unwrap();
    assert_eq!((sites.len(), sites[0].name.as_str(), sites[0].components.len()), (1, "home", 1));
    let audit: serde_json::Value = server.get("/api/v1/audit", &admin).await.json().await.unwrap();
    assert!(audit.to_string().contains("home-process-server registered"));
    let metrics = server.get("/metrics", &admin).await.text().await.unwrap();
    assert!(metrics.contains("sockeye_component_connected{component=\"home-process-server\"} 1"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn the_document_describes_the_routes_and_events_open_a_stream() {
    let server = Server::start().await;
    let admin = server.admin();
    let document: serde_json::Value = server.get("/api/v1/openapi.json", &admin).await.json().await.unwrap();
    assert!(document["paths"]["/api/v1/components/{name}/exchange"]["post"].is_object());
    let events = server.get("/api/v1/events", &admin).await;
    assert_eq!(events.status(), StatusCode::OK);
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    // The stream ends when the server stops, so that stopping never hangs on a listener.
    server.stop().await;
}

#[tokio::test]
async fn an_operation_is_planned_started_followed_by_events_and_cancelled() {
    let server = Server::start().await;
    let admin = server.admin();
    let machine = serde_json::json!({
        "spec": {"name": "web01", "memory_mib": 64, "vcpus": 1, "boot": "firmware", "disks": [
            {"key": "disk0", "size": 65536, "source": {"own": {"path": "disk0.raw", "format": "raw"}}}]},
        "power": "running",
    });
    let mut orders = serde_json::Value::Null;
    let mut exchanges = vec![];
    for name in ["home-process-server", "home-master-target", "cloud-process-server", "cloud-master-target"] {
        let token = server.register(name).await.token;
        exchanges.push((format!("/api/v1/components/{name}/exchange"), token));
    }
    let words = serde_json::json!({"machines": [machine], "replications": [], "reports": [], "wait_ms": 0, "seen": 0, "fault": null});
    for (path, token) in &exchanges {
        assert_eq!(server.post(path, token, &words).await.status(), StatusCode::OK);
    }
    let machines: serde_json::Value = server.get("/api/v1/machines?site=home", &admin).await.json().await.unwrap();
    assert_eq!(machines[0]["machine"]["spec"]["name"], "web01");
    let mut events = server.get("/api/v1/events", &admin).await;

    let request = serde_json::json!({"item": "web01", "operation":
        {"operation": "protect", "machine": "web01", "from": "home", "to": "cloud", "interval_ms": 1000}});
    let plan: serde_json::Value = server.post("/api/v1/plans", &admin, &request).await.json().await.unwrap();
    assert!(plan["checks"].as_array().unwrap().iter().all(|check| check["fault"].is_null()), "{plan}");
    let start = serde_json::json!({"request": request, "fingerprint": plan["fingerprint"], "reason": "a test", "idempotency_key": "k"});
    let job: serde_json::Value = server.post("/api/v1/jobs", &admin, &start).await.json().await.unwrap();
    let again: serde_json::Value = server.post("/api/v1/jobs", &admin, &start).await.json().await.unwrap();
    assert_eq!(job["id"], again["id"]);

    // The order travels to the component that it is for, and to no other.
    let (path, token) = &exchanges[3];
    for _ in 0..100 {
        let reply: serde_json::Value = server.post(path, token, &words).await.json().await.unwrap();
        orders = reply["orders"].clone();
        if orders.as_array().is_some_and(|orders| !orders.is_empty()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(orders[0]["order"]["order"], "prepare_replica", "{orders}");
    let mut heard = String::new();
    while !(heard.contains("event: job") && heard.contains("event: item")) {
        let chunk = tokio::time::timeout(std::time::Duration::from_secs(10), events.chunk()).await;
        heard.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap().unwrap()));
    }
    assert!(heard.contains("id: 1"), "{heard}");

    let cancelled = server.post(&format!("/api/v1/jobs/{}/cancel", job["id"]), &admin, &serde_json::json!({})).await;
    assert_eq!(cancelled.status(), StatusCode::OK);
    let fault = serde_json::json!({"code": "CTL-016", "message": "cancelled", "cause": "asked", "remedy": "none"});
    let report = serde_json::json!({"id": orders[0]["id"], "state": {"failed": fault}});
    let mut answer = words.clone();
    answer["reports"] = serde_json::json!([report]);
    let mut state = serde_json::Value::Null;
    for _ in 0..200 {
        server.post(path, token, &answer).await;
        let job: serde_json::Value =
            server.get(&format!("/api/v1/jobs/{}", job["id"]), &admin).await.json().await.unwrap();
        state = job["state"].clone();
        if state == "cancelled" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(state, "cancelled");
    problem(server.get("/api/v1/items/web01", &admin).await, StatusCode::NOT_FOUND, "CTL-001").await;
    server.stop().await;
}

#[tokio::test]
async fn an_administrator_caps_a_process_server_and_nothing_else() {
    let server = Server::start().await;
    let (admin, registered) = (server.admin(), server.register("home-process-server").await);
    server.register("home-master-target").await;
    let put = async |name: &str, token: &str, body: serde_json::Value| {
        let url = format!("{}/api/v1/components/{name}/bandwidth", server.url);
        let answer = server.client.put(url).bearer_auth(token).json(&body).send().await.unwrap();
        let status = answer.status();
        (status, answer.json::<serde_json::Value>().await.unwrap())
    };
    let cap = serde_json::json!({"bandwidth": {"bits_per_second": 50_000_000}, "reason": null});
    assert_eq!(put("home-process-server", &registered.token, cap.clone()).await.0, StatusCode::UNAUTHORIZED);
    let (status, effect) = put("home-process-server", &admin, cap.clone()).await;
    assert_eq!((status, &effect["already"]), (StatusCode::OK, &false.into()), "{effect}");
    let components: Vec<ComponentView> = server.get("/api/v1/components", &admin).await.json().await.unwrap();
    let capped = components.iter().map(|component| component.bandwidth.bits_per_second);
    assert_eq!(capped.collect::<Vec<_>>(), [None, Some(50_000_000)], "{components:?}");
    for (name, body) in [
        ("home-master-target", cap),
        ("home-process-server", serde_json::json!({"bandwidth": {"bits_per_second": 7}, "reason": null})),
        ("home-process-server", serde_json::json!({"bandwidth": {"mbit": 7}, "reason": null})),
    ] {
        let (status, problem) = put(name, &admin, body).await;
        assert!(status.is_client_error() && problem["cause"].is_string(), "{name}: {status} {problem}");
    }
    server.stop().await;
}
