-- The ID of the request without which a document is of no use. Those from before this version are kept.
ALTER TABLE documents ADD COLUMN request TEXT;
CREATE INDEX documents_by_request ON documents (request) WHERE request IS NOT NULL;
