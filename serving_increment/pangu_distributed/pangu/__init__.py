"""The servable `pangu`; clients call it by the name of this folder."""
