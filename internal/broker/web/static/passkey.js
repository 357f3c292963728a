// The one script of the page: it hands questions of the broker to the authenticator, and answers back.
"use strict";

(() => {
  const toBytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const toText = (buffer) => {
    let text = "";
    for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
    return btoa(text);
  };

  // send posts JSON and returns the answer. It throws the broker's failure.
  const send = async (path, body, csrf) => {
    const headers = {"Content-Type": "application/json"};
    if (csrf) headers["X-CSRF-Token"] = csrf;
    let answer;
    try {
      answer = await fetch(path, {method: "POST", headers, body: JSON.stringify(body), credentials: "same-origin", redirect: "error"});
    } catch {
      throw {detail: "the broker does not answer", hint: "look at your connection, and try again"};
    }
    let read;
    try { read = await answer.json(); } catch { read = {detail: "the broker's answer cannot be read", hint: "load the page again"}; }
    if (!answer.ok) throw {...read, status: answer.status};
    return read;
  };

  const descriptors = (list) => (list || []).map((d) => ({type: d.type, id: toBytes(d.id)}));

  const get = async (options) => {
    const made = await navigator.credentials.get({publicKey: {...options, challenge: toBytes(options.challenge),
      allowCredentials: descriptors(options.allowCredentials)}});
    const answer = {id: toText(made.rawId), authenticator_data: toText(made.response.authenticatorData),
      client_data: toText(made.response.clientDataJSON), signature: toText(made.response.signature)};
    if (made.response.userHandle) answer.user_handle = toText(made.response.userHandle);
    return answer;
  };

  const create = async (options) => {
    const made = await navigator.credentials.create({publicKey: {...options, challenge: toBytes(options.challenge),
      user: {...options.user, id: toBytes(options.user.id)}, excludeCredentials: descriptors(options.excludeCredentials)}});
    return {id: toText(made.rawId), client_data: toText(made.response.clientDataJSON),
      attestation: toText(made.response.attestationObject)};
  };

  // text says in plain words what went wrong.
  const text = (error) => {
    if (error && error.detail) return {what: error.detail, hint: error.hint, status: error.status};
    const names = {
      NotAllowedError: ["the authenticator was not used: it was cancelled, or it took too long", "try again, and have your passkey at hand"],
      InvalidStateError: ["this authenticator has a passkey of yours already", "use another one, or sign in with it"],
      SecurityError: ["the browser does not use passkeys at this address", "open the page by the name of the broker, over https"],
      NotSupportedError: ["this authenticator cannot make such a passkey", "use another one"],
    };
    const [what, hint] = names[error && error.name] || ["the passkey could not be used", "try again, or use another browser"];
    return {what, hint};
  };

  const run = (form, status, problem, work) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const buttons = document.querySelectorAll("form[data-ceremony] button");
      problem.hidden = true;
      problem.replaceChildren();
      buttons.forEach((b) => { b.disabled = true; });
      try {
        if (!window.PublicKeyCredential) throw {detail: "this browser does not know passkeys", hint: "use another browser"};
        status.textContent = "Use your authenticator…";
        const next = await work(event.submitter);
        status.textContent = "Done.";
        window.location.assign(next.location);
      } catch (error) {
        status.textContent = "";
        const {what, hint, status: code} = text(error);
        const line = document.createElement("p");
        line.textContent = what.charAt(0).toUpperCase() + what.slice(1) + ".";
        problem.append(line);
        if (hint) {
          const todo = document.createElement("p");
          todo.textContent = "What to do: " + hint + ".";
          problem.append(todo);
        }
        if (code === 401) {
          const link = document.createElement("a");
          link.href = "/signin?next=" + encodeURIComponent(window.location.pathname);
          link.textContent = "Sign in";
          problem.append(link);
        }
        problem.hidden = false;
        buttons.forEach((b) => { b.disabled = false; });
      }
    });
  };

  const status = document.getElementById("status");
  const problem = document.getElementById("problem");

  for (const form of document.querySelectorAll('form[data-ceremony="signin"]')) {
    run(form, status, problem, async () => {
      const asked = await send("/signin/begin", {});
      const assertion = await get(asked.options);
      return send("/signin/finish", {document: asked.document, seal: asked.seal, assertion, next: form.dataset.next});
    });
  }

  for (const form of document.querySelectorAll('form[data-ceremony="decide"]')) {
    const {request, statement, csrf} = form.dataset;
    const path = "/requests/" + encodeURIComponent(request);
    run(form, status, problem, async (button) => {
      const reason = form.elements.reason ? form.elements.reason.value.trim() : "";
      const asked = await send(path + "/begin", {decision: button.value, reason, statement}, csrf);
      const assertion = await get(asked.options);
      return send(path + "/finish", {document: asked.document, seal: asked.seal, assertion}, csrf);
    });
  }

  const enrol = document.querySelector('form[data-ceremony="enrol"]');
  if (enrol) {
    const token = window.location.hash.slice(1);
    const invited = document.getElementById("invited");
    if (token) {
      send("/enrol/begin", {token}).then((asked) => {
        invited.textContent = "This invitation is for " + asked.person + ".";
        enrol.hidden = false;
      }, (error) => {
        const {what, hint} = text(error);
        invited.textContent = what.charAt(0).toUpperCase() + what.slice(1) + ". What to do: " + hint + ".";
      });
    }
    run(enrol, status, problem, async () => {
      const asked = await send("/enrol/begin", {token});
      const made = await create(asked.options);
      return send("/enrol/finish", {token, document: asked.document, seal: asked.seal, ...made});
    });
  }
})();
