"""The sockets of every node that the workflows use, as the nodes' schemas name them. The browser tests load every file."""

MODEL, CLIP, VAE, IMAGE, LATENT = "MODEL", "CLIP", "VAE", "IMAGE", "LATENT"
CONDITIONING, STRING = "CONDITIONING", "STRING"
DATA, CONCEPT = "PURECC_DATA", "PURECC_CONCEPT"

#: node type -> (socket inputs, outputs), each (name, type)
SOCKETS = {
    "PureCCPocketModel": ([], [("MODEL", MODEL), ("CLIP", CLIP), ("VAE", VAE)]),
    "PureCCConceptSet": (
        [("clip", CLIP), ("vae", VAE), ("pictures", IMAGE), ("masks", "MASK")], [("data", DATA), ("summary", STRING)],
    ),
    "PureCCTrainExtractor": ([("model", MODEL), ("data", DATA)], [("extractor", CONCEPT), ("report", STRING)]),
    "PureCCPureLearning": (
        [("model", MODEL), ("data", DATA), ("extractor", CONCEPT)],
        [("concept", CONCEPT), ("validation", IMAGE), ("report", STRING)],
    ),
    "PureCCSaveConcept": ([("concept", CONCEPT)], [("path", STRING)]),
    "PureCCLoadConcept": ([], [("concept", CONCEPT), ("trigger", STRING)]),
    "PureCCApplyConcept": (
        [("model", MODEL), ("clip", CLIP), ("concept", CONCEPT)],
        [("MODEL", MODEL), ("CLIP", CLIP), ("trigger", STRING)],
    ),
    "PureCCCompare": (
        [("original", IMAGE), ("customised", IMAGE), ("data", DATA)], [("sheet", IMAGE), ("figures", STRING)],
    ),
    "PureCCGrid": ([(f"row_{i}", IMAGE) for i in range(1, 9)], [("grid", IMAGE)]),
    "CheckpointLoaderSimple": ([], [("MODEL", MODEL), ("CLIP", CLIP), ("VAE", VAE)]),
    "CLIPTextEncode": ([("clip", CLIP)], [("CONDITIONING", CONDITIONING)]),
    "EmptySD3LatentImage": ([], [("LATENT", LATENT)]),
    "KSampler": (
        [("model", MODEL), ("positive", CONDITIONING), ("negative", CONDITIONING), ("latent_image", LATENT)],
        [("LATENT", LATENT)],
    ),
    "VAEDecode": ([("samples", LATENT), ("vae", VAE)], [("IMAGE", IMAGE)]),
    "SaveImage": ([("images", IMAGE)], []),
    "MarkdownNote": ([], []),
}  # fmt: skip
