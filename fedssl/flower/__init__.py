"""Federation on real devices and clusters, through Flower (the extra ``fedssl[flower]``)."""
