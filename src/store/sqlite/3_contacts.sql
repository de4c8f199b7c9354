-- Schema 3. Who became a contact by an invite gets in again.

CREATE INDEX redemption_contact ON redemption (host, digest, invitee) WHERE purpose = 'contact';
